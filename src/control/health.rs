//! Health, for whoever starts, stops and routes to the process. No token needed.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::Context;

/// 200 as long as the process answers at all.
pub(super) async fn live() -> Json<Value> {
    Json(json!({"status": "live"}))
}

/// 200 when clients should be sent here, else 503; the body says what is missing.
pub(super) async fn ready(State(context): State<Context>) -> (StatusCode, Json<Value>) {
    let ready = context.cluster.ready();
    let (status, word) = match ready.is_ready() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
    };
    let body = json!({
        "status": word,
        "accepting": ready.accepting,
        "store": ready.store,
        "draining": ready.draining,
    });
    (status, Json(body))
}
