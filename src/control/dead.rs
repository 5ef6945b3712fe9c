//! The admin API's view of dead letters: a page of them, replay of one or many, purge of one or many.
//!
//! Which letters is said in the query, for lists and bulk acts alike: `kind`, `user`, `before_ms` (a
//! time; only letters given up before it). A bulk act without any of them must say `all=true`.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Context;
use super::admin::{ask, unexpected};
use super::reply::{Failure, Named};
use crate::engine::dead::{DeadAct, DeadFilter, DeadKind, DeadLetter, LetterId, PAGE_MAX};
use crate::engine::event::{AdminAct, AdminAnswer, Committed, ShardId};
use crate::protocol::ids::UserId;

/// Letters of a page that names no limit.
const PAGE_DEFAULT: u32 = 100;
/// Letters of one bulk replay. More are replayed by asking again.
const REPLAY_MAX: u32 = PAGE_MAX;
/// Dead letters belong to no user's shard.
const SHARD: ShardId = ShardId(0);

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/dead-letters", get(list).delete(purge_many))
        .route("/dead-letters/replay", post(replay_many))
        .route("/dead-letters/{id}", delete(purge))
        .route("/dead-letters/{id}/replay", post(replay))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    kind: Option<String>,
    user: Option<String>,
    before_ms: Option<u64>,
    after: Option<LetterId>,
    limit: Option<u32>,
    #[serde(default)]
    all: bool,
}

impl Which {
    fn read(query: Result<Query<Self>, QueryRejection>) -> Result<(Self, DeadFilter), Failure> {
        let Query(which) = query.map_err(|_| {
            Failure::bad_request("the query takes kind, user, before_ms, after, limit and all; numbers are whole")
        })?;
        let kind = match which.kind.as_deref() {
            None => None,
            Some(text) => {
                Some(DeadKind::parse(text).ok_or_else(|| Failure::bad_request("kind must be inbox or entry"))?)
            }
        };
        let user = which.user.as_deref().map(UserId::parse).transpose();
        let user = user.map_err(|bad| Failure::bad_request(bad.to_string()))?;
        let filter = DeadFilter { id: None, kind, user, before: which.before_ms };
        Ok((which, filter))
    }

    fn limit(&self, max: u32, default: u32) -> Result<u32, Failure> {
        match self.limit.unwrap_or(default) {
            limit if (1..=max).contains(&limit) => Ok(limit),
            _ => Err(Failure::bad_request(format!("limit must be from 1 to {max}"))),
        }
    }

    /// A bulk act means some letters, or says that it means all.
    fn check_bulk(&self, filter: &DeadFilter) -> Result<(), Failure> {
        if *filter == DeadFilter::default() && !self.all {
            return Err(Failure::bad_request("name kind, user or before_ms, or say all=true"));
        }
        Ok(())
    }
}

async fn list(
    State(context): State<Context>,
    query: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let (which, filter) = Which::read(query)?;
    let limit = which.limit(PAGE_MAX, PAGE_DEFAULT)?;
    let (letters, more) = page(&context, filter, which.after.unwrap_or(0), limit).await?;
    let next = letters.last().filter(|_| more).map(|letter| letter.id);
    let letters: Vec<Value> = letters.iter().map(shown).collect();
    Ok(Json(json!({"letters": letters, "next": next})))
}

async fn page(
    context: &Context,
    filter: DeadFilter,
    after: LetterId,
    limit: u32,
) -> Result<(Vec<DeadLetter>, bool), Failure> {
    match ask(context, SHARD, AdminAct::DeadLetters { filter, after, limit }).await? {
        AdminAnswer::DeadLetters { letters, more } => Ok((letters, more)),
        other => Err(unexpected(&other)),
    }
}

fn shown(letter: &DeadLetter) -> Value {
    let payload: Option<&RawValue> = serde_json::from_str(&letter.payload).ok();
    json!({
        "id": letter.id,
        "kind": letter.kind.as_str(),
        "user": letter.user.as_ref().map(UserId::as_str),
        "reason": letter.reason,
        "attempts": letter.attempts,
        "first_ts": letter.first_ts,
        "last_ts": letter.last_ts,
        "payload": payload,
    })
}

async fn act(context: &Context, act: DeadAct) -> Result<Committed, Failure> {
    match ask(context, SHARD, AdminAct::Dead(act)).await? {
        AdminAnswer::Dead(committed) => Ok(committed),
        other => Err(unexpected(&other)),
    }
}

/// The answer's `seq` is that of the message, or the number of the item.
async fn replay(State(context): State<Context>, Named(id): Named<LetterId>) -> Result<Json<Value>, Failure> {
    let committed = act(&context, DeadAct::Replay(id)).await?;
    Ok(Json(json!({"replayed": 1, "seq": committed.seq, "duplicate": committed.duplicate})))
}

/// Each letter by itself, oldest first: one that fails leaves the others alone.
async fn replay_many(
    State(context): State<Context>,
    query: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let (which, filter) = Which::read(query)?;
    which.check_bulk(&filter)?;
    let limit = which.limit(REPLAY_MAX, REPLAY_MAX)?;
    let (letters, more) = page(&context, filter, which.after.unwrap_or(0), limit).await?;
    let next = letters.last().filter(|_| more).map(|letter| letter.id);
    let asked: Vec<_> = letters
        .iter()
        .map(|letter| {
            let (context, id) = (context.clone(), letter.id);
            (id, tokio::spawn(async move { act(&context, DeadAct::Replay(id)).await }))
        })
        .collect();
    let (mut replayed, mut failed) = (0u32, Vec::new());
    for (id, answer) in asked {
        match answer.await {
            Ok(Ok(_)) => replayed += 1,
            Ok(Err(failure)) => {
                let refusal = failure.refusal();
                failed.push(json!({"id": id, "code": refusal.code.number(), "error": refusal.code.name(),
                                   "message": refusal.message}));
            }
            Err(_) => failed.push(json!({"id": id, "code": 100, "error": "internal", "message": "not asked"})),
        }
    }
    Ok(Json(json!({"replayed": replayed, "failed": failed, "next": next})))
}

async fn purge(State(context): State<Context>, Named(id): Named<LetterId>) -> Result<Json<Value>, Failure> {
    Ok(Json(json!({"purged": act(&context, DeadAct::Purge(DeadFilter::one(id))).await?.seq})))
}

async fn purge_many(
    State(context): State<Context>,
    query: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let (which, filter) = Which::read(query)?;
    which.check_bulk(&filter)?;
    Ok(Json(json!({"purged": act(&context, DeadAct::Purge(filter)).await?.seq})))
}
