//! `antiphon inspect`: what a data folder holds. Reads only, also while a server runs on it.

use std::fmt::Write as _;

use clap::Args;

use super::Shared;
use crate::config::Config;
use crate::exit::{Exit, StartError};
use crate::store::inspect::{InspectOptions, Inspection, inspect};

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
    rooms_max: u32,
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
        let options = InspectOptions { room: self.room.as_deref(), rooms_max: self.rooms_max, quick: self.quick };
        let found = inspect(&data_dir, options).map_err(|err| StartError::new(Exit::DataDir, err.to_string()))?;
        if let (Some(room), true) = (&self.room, found.listed.is_empty()) {
            return Err(StartError::new(Exit::Failure, format!("there is no room {room:?} in {}", data_dir.display())));
        }
        let text = if self.json {
            let json = serde_json::to_string_pretty(&found);
            json.map_err(|err| StartError::new(Exit::Failure, err.to_string()))? + "\n"
        } else {
            self.report(&data_dir.display().to_string(), &found)
        };
        super::print(&text)?;
        Ok(if found.problems.is_empty() { Exit::Ok } else { Exit::DataDir })
    }

    fn report(&self, data_dir: &str, found: &Inspection) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "{name:<12} {value}");
        };
        line("data folder", &data_dir);
        line("epoch", &found.epoch);
        line("position", &found.position);
        line("rooms", &format_args!("{}, {} memberships", found.rooms, found.memberships));
        line("revocations", &found.revocations);
        line(
            "size",
            &format_args!("{} KiB, write-ahead log {} KiB", found.database_bytes / 1024, found.wal_bytes / 1024),
        );
        line("schema", &found.schema);
        let integrity = match (self.quick, found.problems.len()) {
            (true, _) => "not checked".to_owned(),
            (false, 0) => "ok".to_owned(),
            (false, count) => format!("{count} problems"),
        };
        line("integrity", &integrity);
        for problem in &found.problems {
            line("", problem);
        }
        if found.listed.is_empty() {
            return text;
        }
        let width = found.listed.iter().map(|room| room.name.chars().count()).max().unwrap_or(0).max(4);
        let _ = writeln!(text, "\n{:<width$}  {:<7}  {:>10}  {:>8}  last entry", "room", "kind", "seq", "members");
        for room in &found.listed {
            let last = if room.last_ts == 0 { "-".to_owned() } else { utc(room.last_ts) };
            let _ = writeln!(
                text,
                "{:<width$}  {:<7}  {:>10}  {:>8}  {last}",
                room.name, room.kind, room.head, room.members
            );
        }
        if self.room.is_none() && found.rooms > found.listed.len() as u64 {
            let _ = writeln!(text, "… and {} more", found.rooms - found.listed.len() as u64);
        }
        text
    }
}

/// Milliseconds since the Unix epoch as RFC 3339, to the second.
fn utc(ts: u64) -> String {
    let seconds = ts / 1_000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
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
