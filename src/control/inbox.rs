//! The admin API's way into users' inboxes: one user, or many with one result each.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use futures_core::Stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Context;
use super::admin::{ask, depth, parse, unexpected};
use super::reply::{Failure, Named};
use crate::engine::event::{AdminAct, AdminAnswer};
use crate::engine::inbox::NewItem;
use crate::engine::limits::{DATA_BYTES_MAX, ITEM_TTL_MS_MAX, JSON_DEPTH_MAX, NAME_BYTES_MAX};
use crate::engine::shard_of;
use crate::protocol::encode;
use crate::protocol::ids::{Priority, UserId};

/// Users of one bulk call.
const USERS_MAX: usize = 10_000;
/// Users of a bulk call that are under way at once: enough for one commit, far from filling a queue.
const USERS_AT_ONCE: usize = 500;
/// Largest body of a bulk call, bytes: 10,000 names of 64 bytes with quotes, and the item.
const BULK_BYTES_MAX: usize = 1024 * 1024;

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/users/{user}/notify", post(notify))
        .route("/notify", post(notify_many).layer(DefaultBodyLimit::max(BULK_BYTES_MAX)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Notify {
    name: String,
    data: Value,
    priority: Option<String>,
    ttl_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NotifyMany {
    users: Vec<String>,
    name: String,
    data: Value,
    priority: Option<String>,
    ttl_ms: Option<u64>,
}

/// What is queued, checked; for whom is said later.
#[derive(Clone)]
struct Content {
    name: Arc<str>,
    data: Arc<str>,
    priority: Priority,
    ttl_ms: Option<u64>,
}

impl Notify {
    fn check(self) -> Result<Content, Failure> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return Err(Failure::bad_request(format!("name must have 1 to {NAME_BYTES_MAX} bytes")));
        }
        // Two levels are the event and the list that carry it.
        if depth(&self.data) + 2 > JSON_DEPTH_MAX {
            return Err(Failure::bad_request(format!("data must nest at most {} deep", JSON_DEPTH_MAX - 2)));
        }
        let data = self.data.to_string();
        if data.len() > DATA_BYTES_MAX {
            return Err(Failure::bad_request(format!("data must have at most {DATA_BYTES_MAX} bytes as JSON")));
        }
        if self.ttl_ms.is_some_and(|ttl_ms| !(1..=ITEM_TTL_MS_MAX).contains(&ttl_ms)) {
            return Err(Failure::bad_request(format!("ttl_ms must be from 1 to {ITEM_TTL_MS_MAX}")));
        }
        let priority = match self.priority.as_deref() {
            None => Priority::Normal,
            Some(text) => {
                Priority::parse(text).ok_or_else(|| Failure::bad_request("priority must be critical, normal or low"))?
            }
        };
        Ok(Content { name: self.name.into(), data: data.into(), priority, ttl_ms: self.ttl_ms })
    }
}

impl Content {
    fn item(&self, user: UserId) -> NewItem {
        let Self { name, data, priority, ttl_ms } = self.clone();
        NewItem { user, name, data, priority, ttl_ms, from: None, covers: None }
    }
}

async fn notify(
    State(context): State<Context>,
    Named(user): Named<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Failure> {
    let content = parse::<Notify>(body)?.check()?;
    let user = UserId::parse(&user).map_err(|bad| Failure::bad_request(bad.to_string()))?;
    Ok(Json(json!({"item": queue(&context, &content, user).await?})))
}

async fn queue(context: &Context, content: &Content, user: UserId) -> Result<u64, Failure> {
    let shard = shard_of(&user, context.cluster.shards());
    match ask(context, shard, AdminAct::Notify(Box::new(content.item(user)))).await? {
        AdminAnswer::Notified(item) => Ok(item),
        other => Err(unexpected(&other)),
    }
}

/// One line of JSON for each user, in the order given, written as soon as it is known.
async fn notify_many(State(context): State<Context>, body: Result<Bytes, BytesRejection>) -> Result<Response, Failure> {
    let NotifyMany { users, name, data, priority, ttl_ms } = parse(body)?;
    let content = Notify { name, data, priority, ttl_ms }.check()?;
    if users.is_empty() || users.len() > USERS_MAX {
        return Err(Failure::bad_request(format!("users must name 1 to {USERS_MAX} users")));
    }
    let users: Vec<UserId> = users
        .iter()
        .map(|user| UserId::parse(user))
        .collect::<Result<_, _>>()
        .map_err(|bad| Failure::bad_request(format!("users: {bad}")))?;
    let (lines, written) = mpsc::channel(4);
    tokio::spawn(async move {
        for some in users.chunks(USERS_AT_ONCE) {
            // Asked all at once, so that one commit takes them all.
            let asked: Vec<_> = some
                .iter()
                .map(|user| {
                    let (context, content, user) = (context.clone(), content.clone(), user.clone());
                    tokio::spawn(async move { queue(&context, &content, user).await })
                })
                .collect();
            let mut text = Vec::new();
            for (user, answer) in some.iter().zip(asked) {
                if let Ok(result) = answer.await {
                    write_line(&mut text, user, &result);
                }
            }
            if lines.send(Bytes::from(text)).await.is_err() {
                tracing::info!("a bulk notify was cut short: the caller has gone");
                break;
            }
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(Lines(written))).into_response())
}

fn write_line(out: &mut Vec<u8>, user: &UserId, result: &Result<u64, Failure>) {
    out.extend_from_slice(b"{\"user\":");
    encode::string(out, user.as_str());
    match result {
        Ok(item) => encode::field_integer(out, "item", *item),
        Err(failure) => {
            let refusal = failure.refusal();
            encode::field_integer(out, "code", u64::from(refusal.code.number()));
            encode::field_string(out, "error", refusal.code.name());
            encode::field_string(out, "message", &refusal.message);
        }
    }
    out.extend_from_slice(b"}\n");
}

/// What a task writes, as the body of an answer.
struct Lines(mpsc::Receiver<Bytes>);

impl Stream for Lines {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(Ok))
    }
}
