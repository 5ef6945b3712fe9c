//! `antiphon inspect`: what a data folder holds. Reads only, also while a server runs on it.

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};

use super::Shared;
use crate::config::Config;
use crate::engine::event::RoomRow;
use crate::engine::presence::history::date_of;
use crate::exit::{Exit, StartError};
use crate::store::inspect::{Report, inspect};

/// Flags of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Exits with 5 when the folder cannot be read or is not whole.")]
pub(super) struct Inspect {
    #[command(flatten)]
    shared: Shared,
    /// Show this room only
    #[arg(long)]
    room: Option<String>,
    /// Show at most so many rooms, by name
    #[arg(long, value_name = "N", default_value_t = 100)]
    rooms_max: usize,
    /// Leave out the integrity checks, which read the whole database
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    /// # Errors
    /// The folder cannot be read, or has no such room.
    pub(super) fn run(&self) -> Result<Exit, StartError> {
        let data_dir = Config::load(&self.shared.flags())?.server.data_dir;
        let report =
            inspect(&data_dir, !self.quick).map_err(|err| StartError::new(Exit::DataDir, err.about(&data_dir)))?;
        let mut rooms: Vec<&RoomRow> = report.rooms.iter().collect();
        rooms.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some(name) = &self.room {
            rooms.retain(|room| room.name.as_str() == name);
            if rooms.is_empty() {
                let message = format!("there is no room {name:?} in {}", data_dir.display());
                return Err(StartError::new(Exit::Failure, message));
            }
        }
        let left_out = rooms.len().saturating_sub(self.rooms_max);
        rooms.truncate(self.rooms_max);
        let text = match self.json {
            true => format!("{:#}\n", as_json(&report, &rooms)),
            false => as_text(&data_dir.display().to_string(), &report, &rooms, left_out),
        };
        super::print(&text)?;
        Ok(if report.faults.is_empty() { Exit::Ok } else { Exit::DataDir })
    }
}

fn as_json(report: &Report, rooms: &[&RoomRow]) -> Value {
    let rooms: Vec<Value> = rooms
        .iter()
        .map(|room| {
            json!({
                "room": room.name.as_str(),
                "kind": room.kind.as_str(),
                "title": room.title,
                "seq": room.head,
                "members": room.members,
            })
        })
        .collect();
    json!({
        "schema": report.schema_version,
        "epoch": report.epoch,
        "position": report.last.map_or(0, |(position, _)| position),
        "first_ts": report.first.map(|(_, ts)| ts),
        "last_ts": report.last.map(|(_, ts)| ts),
        "rooms": report.rooms.len(),
        "revocations": report.revocations,
        "database_bytes": report.database_bytes,
        "wal_bytes": report.wal_bytes,
        "thorough": report.is_thorough,
        "faults": report.faults,
        "listed": rooms,
    })
}

fn as_text(data_dir: &str, report: &Report, rooms: &[&RoomRow], left_out: usize) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    line("data folder", &data_dir);
    line("epoch", &report.epoch.as_deref().unwrap_or("none yet"));
    match (report.first, report.last) {
        (Some((_, first)), Some((position, last))) => {
            line("position", &format_args!("{position}, from {} to {}", utc(first), utc(last)));
        }
        _ => line("position", &0),
    }
    line("rooms", &report.rooms.len());
    line("revocations", &report.revocations);
    line(
        "size",
        &format_args!("{} KiB, write-ahead log {} KiB", report.database_bytes / 1024, report.wal_bytes / 1024),
    );
    line("schema", &report.schema_version);
    let integrity = match (report.faults.len(), report.is_thorough) {
        (0, true) => "ok".to_owned(),
        (0, false) => "not checked".to_owned(),
        (1, _) => "1 fault".to_owned(),
        (count, _) => format!("{count} faults"),
    };
    line("integrity", &integrity);
    for fault in &report.faults {
        line("", fault);
    }
    if rooms.is_empty() {
        return text;
    }
    let width = rooms.iter().map(|room| room.name.as_str().chars().count()).max().unwrap_or(0).max(4);
    let _ = writeln!(text, "\n{:<width$}  {:<7}  {:>10}  {:>8}", "room", "kind", "seq", "members");
    for room in rooms {
        let (name, kind) = (room.name.as_str(), room.kind.as_str());
        let _ = writeln!(text, "{name:<width$}  {kind:<7}  {:>10}  {:>8}", room.head, room.members);
    }
    if left_out > 0 {
        let _ = writeln!(text, "… and {left_out} more (--rooms-max)");
    }
    text
}

/// Milliseconds since the Unix epoch as RFC 3339, to the second.
fn utc(ts: u64) -> String {
    let seconds = ts / 1_000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date_of(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (ts, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_700_000_000_999, "2023-11-14T22:13:20Z"),
            (4_102_444_799_000, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(ts), text);
        }
    }
}
