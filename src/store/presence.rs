//! What is kept of presence: transitions by user and time, who is shown as present, and counts by
//! hour, day and month. Written in the transaction of the batch that brings the news; nothing here
//! touches the log.
//!
//! - A piece of news is kept once: `presence_shards` holds the last number of each shard.
//! - At the opening everybody who is shown as present was lost with the process before
//!   ([`settle`]): one `offline` each, in one transaction with the end of their being shown.
//! - What is too old goes in small slices ([`prune`]) while the writer has nothing else to do.
//! - Counts are sums that only grow while their period lasts, so that reading them costs their rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::columns::{cause, cause_number, integer, signed, status, status_number};
use crate::engine::presence::Cause;
use crate::engine::presence::history::{
    Analytics, Ask, CLASSES_MAX, DAY_MS, HOUR_MS, History, Hour, Kept, News, OTHER_CLASS, SUMMARY_ROWS_MAX, SessionSum,
    Summing, Transition, month_of,
};
use crate::protocol::command::Status;
use crate::protocol::ids::{DeviceId, UnixMillis};

/// Rows that are deleted in one slice.
pub(super) const SLICE_ROWS: u32 = 500;
/// How long counts by hour and day are kept, days. Those by month stay.
const COUNTS_DAYS: u64 = 400;
/// Users whose last change is older than what is kept, and than this, are forgotten, days: longer than
/// any month, so that nobody is counted twice in one.
const USERS_DAYS: u64 = 62;
/// Days and months that are told.
const DAYS_TOLD: u64 = 31;
const MONTHS_TOLD: u64 = 13;

/// Kinds of periods in `presence_active`.
const PERIOD_DAY: u8 = 0;
const PERIOD_MONTH: u8 = 1;

/// Writes news, within the caller's transaction.
pub(super) fn write(conn: &Connection, all: &[Arc<News>]) -> rusqlite::Result<()> {
    for news in all {
        if is_new(conn, news)? {
            write_one(conn, news)?;
        }
    }
    Ok(())
}

fn is_new(conn: &Connection, news: &News) -> rusqlite::Result<bool> {
    let [online, away, busy] = news.present;
    let mut upsert = conn.prepare_cached(
        "INSERT INTO presence_shards (shard, boot, number, ts, online, away, busy) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (shard) DO UPDATE SET boot = excluded.boot, number = excluded.number, ts = excluded.ts,
         online = excluded.online, away = excluded.away, busy = excluded.busy
         WHERE boot <> excluded.boot OR number < excluded.number",
    )?;
    // The life's name is a pattern of bits, not a quantity.
    let boot = news.boot.cast_signed();
    let changed =
        upsert.execute(params![news.shard.0, boot, signed(news.number), signed(news.ts), online, away, busy])?;
    Ok(changed > 0)
}

fn write_one(conn: &Connection, news: &News) -> rusqlite::Result<()> {
    let mut shown_ms = BTreeMap::<u64, [u64; 3]>::new();
    for transition in &news.transitions {
        if let Some(at) = crate::engine::presence::history::present_index(transition.was) {
            shown_ms.entry(transition.ts / HOUR_MS).or_default()[at] += transition.was_ms;
        }
    }
    let mut count = conn.prepare_cached(
        "INSERT INTO presence_active (period, at, users) VALUES (?1, ?2, ?3)
         ON CONFLICT (period, at) DO UPDATE SET users = users + excluded.users",
    )?;
    for ((period, at), users) in write_transitions(conn, &news.transitions)? {
        count.execute((period, signed(at), users))?;
    }
    let hour = news.ts / HOUR_MS;
    write_peak(conn, hour)?;
    let mut add = conn.prepare_cached(
        "INSERT INTO presence_hours (hour, peak, online, away, busy, online_ms, away_ms, busy_ms)
         VALUES (?1, 0, 0, 0, 0, ?2, ?3, ?4)
         ON CONFLICT (hour) DO UPDATE SET online_ms = online_ms + excluded.online_ms,
         away_ms = away_ms + excluded.away_ms, busy_ms = busy_ms + excluded.busy_ms",
    )?;
    for (hour, [online, away, busy]) in shown_ms {
        add.execute((signed(hour), signed(online), signed(away), signed(busy)))?;
    }
    for (class, tally) in &news.sessions {
        add_sessions(conn, hour, class, *tally)?;
    }
    Ok(())
}

/// Users who were seen for the first time in a period: its kind, which one, how many.
type Firsts = BTreeMap<(u8, u64), u32>;

fn write_transitions(conn: &Connection, transitions: &[Transition]) -> rusqlite::Result<Firsts> {
    let mut firsts = Firsts::new();
    let mut insert = conn.prepare_cached(
        "INSERT OR REPLACE INTO presence_log (user, ts, status, cause, device) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let mut find = conn.prepare_cached("SELECT day, month FROM presence_users WHERE user = ?1")?;
    let mut upsert = conn.prepare_cached(
        "INSERT INTO presence_users (user, status, since, day, month) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (user) DO UPDATE SET status = excluded.status, since = excluded.since,
         day = max(day, excluded.day), month = max(month, excluded.month)",
    )?;
    for Transition { user, ts, status, cause, device, .. } in transitions {
        let (user, device, status) = (user.as_str(), device.as_ref().map(DeviceId::as_str), status_number(*status));
        insert.execute((user, signed(*ts), status, cause_number(*cause), device))?;
        let known = find.query_row([user], |row| Ok((integer(row, 0)?, integer(row, 1)?))).optional()?;
        let (was_day, was_month) = known.unwrap_or((0, 0));
        let (day, month) = (ts / DAY_MS, month_of(*ts));
        upsert.execute((user, status, signed(*ts), signed(day), signed(month)))?;
        if day > was_day {
            *firsts.entry((PERIOD_DAY, day)).or_default() += 1;
        }
        if month > was_month {
            *firsts.entry((PERIOD_MONTH, month)).or_default() += 1;
        }
    }
    Ok(firsts)
}

/// All shards together, as each of them last said.
fn write_peak(conn: &Connection, hour: u64) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO presence_hours (hour, peak, online, away, busy, online_ms, away_ms, busy_ms)
         SELECT ?1, sum(online + away + busy), sum(online), sum(away), sum(busy), 0, 0, 0 FROM presence_shards WHERE true
         ON CONFLICT (hour) DO UPDATE SET peak = max(peak, excluded.peak), online = max(online, excluded.online),
         away = max(away, excluded.away), busy = max(busy, excluded.busy)",
    )?
    .execute([signed(hour)])?;
    Ok(())
}

fn add_sessions(conn: &Connection, hour: u64, class: &str, tally: SessionSum) -> rusqlite::Result<()> {
    let mut update = conn.prepare_cached(
        "UPDATE presence_devices SET sessions = sessions + ?3, total_ms = total_ms + ?4 WHERE hour = ?1 AND class = ?2",
    )?;
    let (hour, sessions, total_ms) = (signed(hour), signed(tally.sessions), signed(tally.total_ms));
    if update.execute((hour, class, sessions, total_ms))? > 0 {
        return Ok(());
    }
    let mut count = conn.prepare_cached("SELECT count(*) FROM presence_devices WHERE hour = ?1")?;
    let classes: u32 = count.query_row([hour], |row| row.get(0))?;
    let class = if (classes as usize) < CLASSES_MAX { class } else { OTHER_CLASS };
    conn.prepare_cached(
        "INSERT INTO presence_devices (hour, class, sessions, total_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (hour, class) DO UPDATE SET sessions = sessions + excluded.sessions,
         total_ms = total_ms + excluded.total_ms",
    )?
    .execute((hour, class, sessions, total_ms))?;
    Ok(())
}

/// Ends what a lost process left behind: nobody is present. Tells how many were shown as present.
pub(super) fn settle(conn: &Connection, now: UnixMillis, last_log_ts: UnixMillis) -> rusqlite::Result<u64> {
    let told: Option<i64> = conn.query_row("SELECT max(ts) FROM presence_shards", [], |row| row.get(0))?;
    let is_shown = conn.prepare("SELECT 1 FROM presence_users WHERE status > 0 LIMIT 1")?.exists([])?;
    if told.is_none() && !is_shown {
        return Ok(0);
    }
    // Not later than now, whatever the clocks said.
    let alive = told.unwrap_or(0).max(signed(last_log_ts)).min(signed(now));
    let (now, restart) = (signed(now), cause_number(Cause::ServerRestart));
    let transaction = conn.unchecked_transaction()?;
    let lost = transaction.execute(
        "INSERT OR REPLACE INTO presence_log (user, ts, status, cause, lost_ts)
         SELECT user, max(?1, since + 1), 0, ?2, max(?3, since) FROM presence_users WHERE status > 0",
        (now, restart, alive),
    )?;
    transaction.execute("UPDATE presence_users SET since = max(?1, since + 1), status = 0 WHERE status > 0", [now])?;
    transaction.execute("DELETE FROM presence_shards", [])?;
    transaction.commit()?;
    Ok(lost as u64)
}

/// A page of a user's transitions, and what they come to over the whole time.
pub(super) fn history(conn: &Connection, ask: &Ask) -> rusqlite::Result<History> {
    let (user, from, to) = (ask.user.as_str(), signed(ask.from), signed(ask.to));
    let mut summing = Summing::new(ask.from, shown_at(conn, user, from)?);
    let mut statement = conn.prepare_cached(
        "SELECT ts, status, cause, device, lost_ts FROM presence_log WHERE user = ?1 AND ts >= ?2 AND ts < ?3
         ORDER BY ts LIMIT ?4",
    )?;
    let mut rows = statement.query((user, from, to, SUMMARY_ROWS_MAX as i64 + 1))?;
    let (mut history, mut seen) = (History::default(), 0);
    let mut is_partial = false;
    while let Some(row) = rows.next()? {
        if seen == SUMMARY_ROWS_MAX {
            is_partial = true;
            break;
        }
        let ts = integer(row, 0)?;
        summing.add(ts, status(row.get(1)?)?, row.get::<_, Option<i64>>(4)?.map(|ts| ts.max(0) as u64));
        if seen < ask.limit as usize {
            history.transitions.push(kept(row)?);
        } else if seen == ask.limit as usize {
            history.next = Some(ts);
        }
        seen += 1;
    }
    history.summary = summing.end(ask.to, is_partial);
    Ok(history)
}

/// What was shown of a user right before a moment. A change that was deleted meanwhile is known as
/// long as it is the last one.
fn shown_at(conn: &Connection, user: &str, at: i64) -> rusqlite::Result<Status> {
    let mut before =
        conn.prepare_cached("SELECT status FROM presence_log WHERE user = ?1 AND ts < ?2 ORDER BY ts DESC LIMIT 1")?;
    if let Some(number) = before.query_row((user, at), |row| row.get(0)).optional()? {
        return status(number);
    }
    let mut last = conn.prepare_cached("SELECT status FROM presence_users WHERE user = ?1 AND since < ?2")?;
    last.query_row((user, at), |row| row.get(0)).optional()?.map_or(Ok(Status::Offline), status)
}

fn kept(row: &Row<'_>) -> rusqlite::Result<Kept> {
    let device = row.get_ref(3)?.as_str_or_null()?;
    let bad = |_| rusqlite::Error::InvalidColumnName("device".to_owned());
    Ok(Kept {
        ts: integer(row, 0)?,
        status: status(row.get(1)?)?,
        cause: cause(row.get(2)?)?,
        device: device.map(DeviceId::parse).transpose().map_err(bad)?,
        lost_ts: row.get::<_, Option<i64>>(4)?.map(|ts| ts.max(0) as u64),
    })
}

/// The operator's numbers.
pub(super) fn analytics(conn: &Connection, now: UnixMillis, hours: u32) -> rusqlite::Result<Analytics> {
    let first = signed((now / HOUR_MS + 1).saturating_sub(u64::from(hours)));
    let mut statement = conn.prepare_cached(
        "SELECT hour, peak, online, away, busy, online_ms, away_ms, busy_ms,
         coalesce((SELECT sum(sessions) FROM presence_devices d WHERE d.hour = h.hour), 0),
         coalesce((SELECT sum(total_ms) FROM presence_devices d WHERE d.hour = h.hour), 0)
         FROM presence_hours h WHERE hour >= ?1 ORDER BY hour",
    )?;
    let rows = statement.query_map([first], |row| {
        Ok(Hour {
            hour: integer(row, 0)?,
            peak: integer(row, 1)?,
            peaks: [integer(row, 2)?, integer(row, 3)?, integer(row, 4)?],
            shown_ms: [integer(row, 5)?, integer(row, 6)?, integer(row, 7)?],
            ended: SessionSum { sessions: integer(row, 8)?, total_ms: integer(row, 9)? },
        })
    })?;
    let hours = rows.collect::<rusqlite::Result<_>>()?;
    let mut statement = conn.prepare_cached(
        "SELECT class, sum(sessions), sum(total_ms) FROM presence_devices WHERE hour >= ?1 GROUP BY class ORDER BY class",
    )?;
    let rows = statement.query_map([first], |row| {
        Ok((row.get(0)?, SessionSum { sessions: integer(row, 1)?, total_ms: integer(row, 2)? }))
    })?;
    let devices = by_size(rows.collect::<rusqlite::Result<_>>()?);
    let days = active(conn, PERIOD_DAY, (now / DAY_MS + 1).saturating_sub(DAYS_TOLD))?;
    let months = active(conn, PERIOD_MONTH, (month_of(now) + 1).saturating_sub(MONTHS_TOLD))?;
    Ok(Analytics { hours, devices, days, months })
}

/// Each hour has a bounded number of classes, all hours together have not: the smallest are put together.
fn by_size(mut classes: Vec<(Box<str>, SessionSum)>) -> Vec<(Box<str>, SessionSum)> {
    if classes.len() <= CLASSES_MAX {
        return classes;
    }
    classes.sort_by_key(|(class, tally)| (&**class == OTHER_CLASS, std::cmp::Reverse(tally.sessions)));
    let mut other = SessionSum::default();
    classes.drain(CLASSES_MAX..).for_each(|(_, tally)| other.add(tally));
    classes.push((OTHER_CLASS.into(), other));
    classes
}

fn active(conn: &Connection, period: u8, first: u64) -> rusqlite::Result<Vec<(u64, u64)>> {
    let mut statement =
        conn.prepare_cached("SELECT at, users FROM presence_active WHERE period = ?1 AND at >= ?2 ORDER BY at")?;
    let rows = statement.query_map((period, signed(first)), |row| Ok((integer(row, 0)?, integer(row, 1)?)))?;
    rows.collect()
}

/// What a slice of pruning did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pruned {
    /// Transitions that were deleted.
    pub transitions: u64,
    /// There may be more to do.
    pub is_full: bool,
}

/// Deletes a slice of what is older than `days`, in a transaction of its own. `cursor` is where the
/// look at users goes on.
pub(super) fn prune(conn: &Connection, now: UnixMillis, days: u32, cursor: &mut String) -> rusqlite::Result<Pruned> {
    let oldest = signed(now.saturating_sub(u64::from(days) * DAY_MS));
    let transaction = conn.unchecked_transaction()?;
    let transitions = transaction
        .prepare_cached(
            "DELETE FROM presence_log WHERE (user, ts) IN
             (SELECT user, ts FROM presence_log INDEXED BY presence_log_ts WHERE ts < ?1 ORDER BY ts LIMIT ?2)",
        )?
        .execute((oldest, SLICE_ROWS))?;
    prune_users(&transaction, now, days, cursor)?;
    let hour = signed((now / HOUR_MS).saturating_sub(COUNTS_DAYS * 24));
    let day = signed((now / DAY_MS).saturating_sub(COUNTS_DAYS));
    // Hours have few rows of their own, and many by class.
    let hour_of_classes = signed((now / HOUR_MS).saturating_sub(u64::from(days).max(DAYS_TOLD) * 24));
    for (sql, first) in [
        ("DELETE FROM presence_hours WHERE hour < ?1", hour),
        ("DELETE FROM presence_devices WHERE hour < ?1", hour_of_classes),
        ("DELETE FROM presence_active WHERE period = 0 AND at < ?1", day),
    ] {
        transaction.prepare_cached(sql)?.execute([first])?;
    }
    transaction.commit()?;
    Ok(Pruned { transitions: transitions as u64, is_full: transitions as u32 == SLICE_ROWS })
}

/// Looks at the next few users and forgets those who have not been seen for long. The cursor then
/// stands behind the last of them, or at the beginning again.
fn prune_users(conn: &Connection, now: UnixMillis, days: u32, cursor: &mut String) -> rusqlite::Result<()> {
    let next: Option<String> = conn
        .prepare_cached("SELECT user FROM presence_users WHERE user > ?1 ORDER BY user LIMIT 1 OFFSET ?2")?
        .query_row((&*cursor, SLICE_ROWS - 1), |row| row.get(0))
        .optional()?;
    let oldest = signed((now / DAY_MS).saturating_sub(USERS_DAYS.max(u64::from(days))));
    let mut delete = conn.prepare_cached(
        "DELETE FROM presence_users WHERE user > ?1 AND (?2 IS NULL OR user <= ?2) AND day < ?3 AND status = 0",
    )?;
    delete.execute((&*cursor, &next, oldest))?;
    *cursor = next.unwrap_or_default();
    Ok(())
}
