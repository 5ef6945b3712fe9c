//! The operator's view of presence: who is here now, in numbers, and what the store kept of the past.

use std::collections::BTreeMap;

use axum::extract::{RawQuery, State};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::Context;
use super::admin::{ask, unexpected};
use super::reply::Failure;
use crate::engine::event::{AdminAct, AdminAnswer, PresenceCount, ShardId};
use crate::engine::presence::history::{Analytics, HOUR_MS, SessionSum, add_to_class, date_of};

/// Hours that are told when nobody says how many.
const HOURS_DEFAULT: u32 = 24;
/// Most hours that are told: a month.
const HOURS_MAX: u32 = 744;

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/presence", get(presence)).route("/presence/analytics", get(analytics))
}

/// Who is present, in numbers, over all shards.
async fn presence(State(context): State<Context>) -> Result<Json<Value>, Failure> {
    Ok(Json(now(&context).await?))
}

async fn now(context: &Context) -> Result<Value, Failure> {
    let shards = context.cluster.shards();
    let asked: Vec<_> = (0..shards).map(|shard| ask(context, ShardId(shard), AdminAct::Presence)).collect();
    let mut all = PresenceCount::default();
    for answer in asked {
        match answer.await? {
            AdminAnswer::Presence(part) => {
                all.online += part.online;
                all.away += part.away;
                all.busy += part.busy;
                all.invisible += part.invisible;
                all.devices.iter_mut().zip(part.devices).for_each(|(sum, count)| *sum += count);
            }
            other => return Err(unexpected(&other)),
        }
    }
    let [one, two, three, more] = all.devices;
    Ok(json!({
        "present": all.online + all.away + all.busy,
        "status": {"online": all.online, "away": all.away, "busy": all.busy, "invisible": all.invisible},
        "devices": {"1": one, "2": two, "3": three, "more": more},
    }))
}

/// Now, by hour, by day and month, by class of device.
async fn analytics(State(context): State<Context>, RawQuery(query): RawQuery) -> Result<Json<Value>, Failure> {
    let hours = hours_of(query.as_deref().unwrap_or_default())?;
    let mut now = now(&context).await?;
    let mut classes: BTreeMap<Box<str>, u64> = BTreeMap::new();
    let shards = context.cluster.shards();
    let asked: Vec<_> = (0..shards).map(|shard| ask(&context, ShardId(shard), AdminAct::PresenceDevices)).collect();
    for answer in asked {
        match answer.await? {
            AdminAnswer::PresenceDevices(part) => {
                for (class, count) in part {
                    add_to_class(&mut classes, class, |sum| *sum += count);
                }
            }
            other => return Err(unexpected(&other)),
        }
    }
    now["by_device"] = json!(classes);
    match ask(&context, ShardId(0), AdminAct::PresenceAnalytics { hours }).await? {
        AdminAnswer::PresenceAnalytics(known) => Ok(Json(describe(now, &known))),
        other => Err(unexpected(&other)),
    }
}

fn hours_of(query: &str) -> Result<u32, Failure> {
    let bad = || Failure::bad_request(format!("hours must be an integer from 1 to {HOURS_MAX}"));
    let mut hours = HOURS_DEFAULT;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("hours", number)) => hours = number.parse().map_err(|_| bad())?,
            _ => return Err(Failure::bad_request("the only parameter is hours")),
        }
    }
    if (1..=HOURS_MAX).contains(&hours) { Ok(hours) } else { Err(bad()) }
}

fn describe(now: Value, known: &Analytics) -> Value {
    let hours = known.hours.iter().map(|hour| {
        let by_status = |[online, away, busy]: [u64; 3]| json!({"online": online, "away": away, "busy": busy});
        json!({
            "ts": hour.hour * HOUR_MS,
            "peak": hour.peak,
            "peak_by_status": by_status(hour.peaks),
            "shown_ms": by_status(hour.shown_ms),
            "sessions": hour.ended.sessions,
            "average_session_ms": average(hour.ended),
        })
    });
    let days = known.days.iter().map(|(day, users)| {
        let (year, month, day) = date_of(*day);
        json!({"day": format!("{year:04}-{month:02}-{day:02}"), "active_users": users})
    });
    let months = known.months.iter().map(
        |(month, users)| json!({"month": format!("{:04}-{:02}", month / 12, month % 12 + 1), "active_users": users}),
    );
    let mut all = SessionSum::default();
    known.devices.iter().for_each(|(_, tally)| all.add(*tally));
    let devices = known.devices.iter().map(
        |(class, tally)| json!({"class": class, "sessions": tally.sessions, "average_session_ms": average(*tally)}),
    );
    json!({
        "now": now,
        "hours": hours.collect::<Vec<_>>(),
        "days": days.collect::<Vec<_>>(),
        "months": months.collect::<Vec<_>>(),
        "sessions": {"ended": all.sessions, "average_session_ms": average(all)},
        "devices": devices.collect::<Vec<_>>(),
    })
}

/// 0 without sessions.
fn average(tally: SessionSum) -> u64 {
    tally.total_ms.checked_div(tally.sessions).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_are_bounded_and_nothing_else_is_taken() {
        assert_eq!(hours_of("").ok(), Some(24));
        assert_eq!(hours_of("hours=744").ok(), Some(744));
        for bad in ["hours=0", "hours=745", "hours=x", "hours", "days=1", "hours=1&x=2"] {
            assert!(hours_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn months_and_averages_are_readable() {
        let known = Analytics {
            days: vec![(20_454, 3)],
            months: vec![(2026 * 12, 7), (2025 * 12 + 11, 1)],
            devices: vec![("phone".into(), SessionSum { sessions: 2, total_ms: 500 })],
            ..Analytics::default()
        };
        let value = describe(json!({}), &known);
        assert_eq!(value["days"], json!([{"day": "2026-01-01", "active_users": 3}]));
        assert_eq!(value["months"][0]["month"], "2026-01");
        assert_eq!(value["months"][1]["month"], "2025-12");
        assert_eq!(value["devices"], json!([{"class": "phone", "sessions": 2, "average_session_ms": 250}]));
        assert_eq!(value["sessions"], json!({"ended": 2, "average_session_ms": 250}));
        assert_eq!(average(SessionSum::default()), 0);
    }
}
