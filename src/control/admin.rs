//! The admin API. Every path below `/admin` needs the admin token, also those that do not exist.
//!
//! Requests are checked here as strictly as a client's commands, and then handed to the shard of the
//! user they are about: what is decided there is decided as for everybody else.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::rejection::BytesRejection;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::Context;
use super::reply::{self, Failure, Named};
use super::snapshot::Snapshot;
use crate::engine::auth::REVOKED_SLACK_MS;
use crate::engine::event::{AdminAct, AdminAnswer, Revocation, ShardId};
use crate::engine::limits::{BODY_BYTES_MAX, META_BYTES_MAX};
use crate::engine::shard_of;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{Priority, RoomName, UserId};
use crate::protocol::parse::Document;

/// What every path here begins with. Requests arrive without it: the router cuts it off.
pub(super) const PREFIX: &str = "/admin";
/// Author of a published message when none is named.
const DEFAULT_AUTHOR: &str = "system";
/// Longest reason shown to a disconnected client, bytes (a close frame holds 123).
const REASON_BYTES_MAX: usize = 100;
/// Longest `Idempotency-Key`, characters: it becomes the message's `client_id`.
const KEY_CHARS_MAX: usize = 64;
/// Longest `jti`, bytes: tokens with a longer one are refused.
const JTI_BYTES_MAX: usize = 128;

/// Every path below `/admin`.
pub(super) fn routes(context: &Context) -> Router<Context> {
    Router::new()
        .route("/stats", get(stats))
        .route("/rooms/{room}/messages", post(publish))
        .route("/users/{user}/disconnect", post(disconnect))
        .route("/tokens/revoke", post(revoke))
        .merge(super::inbox::routes())
        .merge(super::presence::routes())
        .merge(super::dead::routes())
        .fallback(reply::no_such_path)
        .method_not_allowed_fallback(reply::no_such_method)
        .layer(middleware::from_fn_with_state(context.clone(), require_token))
}

async fn require_token(State(context): State<Context>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = given.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let refused = match token {
        Some(token) if is_same(token.as_bytes(), context.token.reveal().as_bytes()) => return next.run(request).await,
        Some(_) => "the admin token is wrong",
        None => "an admin token is needed: Authorization: Bearer <token>",
    };
    let path = format_args!("{PREFIX}{}", request.uri().path());
    tracing::warn!(method = %request.method(), %path, "admin request without the right token");
    Failure::from(Refusal::new(ErrorCode::Unauthorized, refused)).into_response()
}

/// Compares in a time that depends on the lengths alone.
fn is_same(given: &[u8], wanted: &[u8]) -> bool {
    let differing = given.iter().zip(wanted).fold(0, |seen, (a, b)| std::hint::black_box(seen | (a ^ b)));
    given.len() == wanted.len() && differing == 0
}

async fn stats(State(context): State<Context>) -> Json<Value> {
    let snapshot = Snapshot::take(&context).await;
    let shards: Vec<Value> = snapshot
        .shards
        .iter()
        .enumerate()
        .map(|(shard, stats)| match stats {
            Some(stats) => {
                let mut object = json!({"shard": shard, "answered": true});
                if let (Value::Object(into), Ok(Value::Object(from))) = (&mut object, serde_json::to_value(stats)) {
                    into.extend(from);
                }
                object
            }
            None => json!({"shard": shard, "answered": false}),
        })
        .collect();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_ms": u64::try_from(snapshot.uptime.as_millis()).unwrap_or(u64::MAX),
        "ready": snapshot.ready.is_ready(),
        "draining": snapshot.ready.draining,
        "process": {
            "resident_bytes": snapshot.process.resident_bytes,
            "open_fds": snapshot.process.open_fds,
            "threads": snapshot.process.threads,
        },
        "store": snapshot.store,
        "shards": shards,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Publish {
    author: Option<String>,
    body: String,
    meta: Option<Map<String, Value>>,
    priority: Option<String>,
}

async fn publish(
    State(context): State<Context>,
    Named(room): Named<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let publish: Publish = parse(body)?;
    let room = RoomName::parse(&room).map_err(|bad| Failure::bad_request(bad.to_string()))?;
    let author = UserId::parse(publish.author.as_deref().unwrap_or(DEFAULT_AUTHOR))
        .map_err(|bad| Failure::bad_request(format!("author: {bad}")))?;
    if publish.body.is_empty() || publish.body.len() > BODY_BYTES_MAX {
        return Err(Failure::bad_request(format!("body must have 1 to {BODY_BYTES_MAX} bytes")));
    }
    let priority = match publish.priority.as_deref() {
        None => Priority::Normal,
        Some(text) => {
            Priority::parse(text).ok_or_else(|| Failure::bad_request("priority must be critical, normal or low"))?
        }
    };
    let shard = shard_of(&author, context.cluster.shards());
    let act = AdminAct::Publish {
        room,
        author,
        client_id: idempotency_key(&headers)?,
        body: publish.body.into_boxed_str(),
        meta: publish.meta.map(meta_text).transpose()?,
        priority,
    };
    match ask(&context, shard, act).await? {
        AdminAnswer::Published { room, committed } => Ok(Json(json!({
            "room": room.as_str(),
            "seq": committed.seq,
            "ts": committed.ts,
            "duplicate": committed.duplicate,
        }))
        .into_response()),
        other => Err(unexpected(&other)),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<Box<str>>, Failure> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let rule =
        || Failure::bad_request(format!("Idempotency-Key must be 1 to {KEY_CHARS_MAX} visible ASCII characters"));
    let key = value.to_str().map_err(|_| rule())?;
    if key.is_empty() || key.len() > KEY_CHARS_MAX {
        return Err(rule());
    }
    Ok(Some(key.into()))
}

fn meta_text(meta: Map<String, Value>) -> Result<Box<str>, Failure> {
    let text = Value::Object(meta).to_string();
    if text.len() > META_BYTES_MAX {
        return Err(Failure::bad_request(format!("meta must have at most {META_BYTES_MAX} bytes as JSON")));
    }
    Ok(text.into_boxed_str())
}

/// Nesting of a value; serde_json has bounded it at 128 already.
pub(super) fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disconnect {
    reason: Option<String>,
}

async fn disconnect(
    State(context): State<Context>,
    Named(user): Named<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Failure> {
    let is_empty = matches!(&body, Ok(bytes) if bytes.is_empty());
    let request: Disconnect = if is_empty { Disconnect::default() } else { parse(body)? };
    let user = UserId::parse(&user).map_err(|bad| Failure::bad_request(bad.to_string()))?;
    let reason = request.reason.unwrap_or_else(|| "disconnected by an administrator".to_owned());
    if reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        return Err(Failure::bad_request(format!(
            "reason must have at most {REASON_BYTES_MAX} bytes and no control characters"
        )));
    }
    let shard = shard_of(&user, context.cluster.shards());
    match ask(&context, shard, AdminAct::Disconnect { user, reason: reason.into_boxed_str() }).await? {
        AdminAnswer::Disconnected(count) => Ok(Json(json!({"disconnected": count}))),
        other => Err(unexpected(&other)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    jti: Option<String>,
    /// When the token expires, if that is known: it is remembered no longer than need be.
    expires_ts: Option<u64>,
    user: Option<String>,
}

async fn revoke(State(context): State<Context>, body: Result<Bytes, BytesRejection>) -> Result<Json<Value>, Failure> {
    let request: Revoke = parse(body)?;
    if request.expires_ts.is_some() && request.jti.is_none() {
        return Err(Failure::bad_request("expires_ts is of a jti"));
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let (shard, revocation) = match (request.jti, request.user) {
        (Some(jti), None) if (1..=JTI_BYTES_MAX).contains(&jti.len()) => {
            let jti = jti.into_boxed_str();
            // Past, it would be forgotten before it is needed; a clock's difference is no matter.
            if request.expires_ts.is_some_and(|at| at.saturating_add(REVOKED_SLACK_MS) <= now_ms) {
                return Err(Failure::bad_request("expires_ts must be in milliseconds since 1970, and not past"));
            }
            let revocation = match request.expires_ts {
                None => Revocation::Jti(jti),
                Some(expires_ts) => Revocation::JtiUntil(jti, expires_ts),
            };
            (ShardId(0), revocation)
        }
        (Some(_), None) => return Err(Failure::bad_request(format!("jti must have 1 to {JTI_BYTES_MAX} bytes"))),
        (None, Some(user)) => {
            let user = UserId::parse(&user).map_err(|bad| Failure::bad_request(bad.to_string()))?;
            (shard_of(&user, context.cluster.shards()), Revocation::UserBefore(user, now_ms / 1_000))
        }
        _ => return Err(Failure::bad_request("name either a jti or a user")),
    };
    match ask(&context, shard, AdminAct::Revoke(revocation)).await? {
        AdminAnswer::Revoked => Ok(Json(json!({"revoked": true}))),
        other => Err(unexpected(&other)),
    }
}

/// Reads a JSON body.
pub(super) fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Failure> {
    let bytes = body.map_err(|rejection| match rejection.into_response().status() {
        StatusCode::PAYLOAD_TOO_LARGE => Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::new(ErrorCode::LimitExceeded, format!("a body has at most {} bytes", super::BODY_BYTES_MAX)),
        ),
        _ => Failure::bad_request("the body could not be read"),
    })?;
    let read = serde_json::from_slice(&bytes)
        .map_err(|err| Failure::bad_request(format!("the body is not as it should be: {err}")))?;
    // What clients may not send is not sent to them either: names twice, numbers past 64 bits, nesting.
    let strictly = Document::new().read(&bytes, |root| root.unique_names().map_err(Failure::from));
    strictly.map_err(|fault| Failure::bad_request(fault.message()))??;
    Ok(read)
}

/// Asks a shard and waits for a bounded time.
pub(super) async fn ask(context: &Context, shard: ShardId, act: AdminAct) -> Result<AdminAnswer, Failure> {
    let answer = context.cluster.admin(shard, act);
    match tokio::time::timeout(context.answer_wait, answer).await {
        Ok(Ok(result)) => result.map_err(Failure::from),
        Ok(Err(_)) => Err(Refusal::new(ErrorCode::Internal, "the shard gave no answer").into()),
        Err(_) => Err(Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            Refusal::new(ErrorCode::Internal, "no answer in time; the outcome is unknown, try again with the same key")
                .retry_after(1_000),
        )),
    }
}

pub(super) fn unexpected(answer: &AdminAnswer) -> Failure {
    tracing::error!(?answer, "a shard answered another question");
    Refusal::new(ErrorCode::Internal, "the shard answered another question").into()
}
