//! How values stand in columns: the numbers and texts of the file format. Changing one is a migration.

use std::sync::Arc;

use rusqlite::Row;

use crate::engine::event::{Audience, RoomRow};
use crate::engine::presence::Cause;
use crate::engine::tally::Tally;
use crate::protocol::command::Status;
use crate::protocol::ids::{Priority, Role, RoomKey, RoomKind, RoomName, UserId};

pub(super) fn role_number(role: Role) -> u8 {
    match role {
        Role::Banned => 0,
        Role::Member => 1,
        Role::Moderator => 2,
        Role::Owner => 3,
    }
}

pub(super) fn role(number: u8) -> rusqlite::Result<Role> {
    [Role::Banned, Role::Member, Role::Moderator, Role::Owner]
        .get(usize::from(number))
        .copied()
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(0, i64::from(number)))
}

pub(super) fn room_kind_number(kind: RoomKind) -> u8 {
    match kind {
        RoomKind::Public => 0,
        RoomKind::Private => 1,
        RoomKind::Direct => 2,
    }
}

pub(super) fn room_kind(number: u8) -> rusqlite::Result<RoomKind> {
    [RoomKind::Public, RoomKind::Private, RoomKind::Direct]
        .get(usize::from(number))
        .copied()
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(0, i64::from(number)))
}

pub(super) fn priority_number(priority: Priority) -> u8 {
    match priority {
        Priority::Critical => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

pub(super) fn priority(number: u8) -> rusqlite::Result<Priority> {
    [Priority::Critical, Priority::Normal, Priority::Low]
        .get(usize::from(number))
        .copied()
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(0, i64::from(number)))
}

pub(super) fn status_number(status: Status) -> u8 {
    match status {
        Status::Offline => 0,
        Status::Away => 1,
        Status::Online => 2,
        Status::Busy => 3,
    }
}

pub(super) fn status(number: u8) -> rusqlite::Result<Status> {
    [Status::Offline, Status::Away, Status::Online, Status::Busy]
        .get(usize::from(number))
        .copied()
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(0, i64::from(number)))
}

pub(super) fn cause_number(cause: Cause) -> u8 {
    Cause::ALL.iter().zip(0..).find(|(other, _)| **other == cause).map_or(0, |(_, number)| number)
}

pub(super) fn cause(number: u8) -> rusqlite::Result<Cause> {
    Cause::ALL.get(usize::from(number)).copied().ok_or(rusqlite::Error::IntegralValueOutOfRange(0, i64::from(number)))
}

/// See [`Audience::to_text`].
pub(super) fn audience(text: &str) -> rusqlite::Result<Arc<Audience>> {
    Audience::from_text(text).ok_or_else(|| rusqlite::Error::InvalidColumnName("audience".to_owned()))
}

pub(super) fn user(text: &str) -> rusqlite::Result<UserId> {
    UserId::parse(text).map_err(|_| rusqlite::Error::InvalidColumnName("user".to_owned()))
}

pub(super) fn room_name(text: &str) -> rusqlite::Result<RoomName> {
    RoomName::parse(text).map_err(|_| rusqlite::Error::InvalidColumnName("name".to_owned()))
}

/// Columns of a [`RoomRow`] in every statement: `key, name, kind, title, members` of `r`, and `seq,
/// messages, hash` of its head `h`, which stands in [`room_tables`].
macro_rules! room_columns {
    () => {
        "r.key, r.name, r.kind, r.title, r.members, h.seq, h.messages, h.hash"
    };
}
pub(super) use room_columns;

/// How many columns [`room_columns`] are.
pub(super) const ROOM_COLUMNS: usize = 8;

/// Where [`room_columns`] come from: rooms `r` and their heads `h`.
macro_rules! room_tables {
    () => {
        "rooms r LEFT JOIN heads h ON h.room = r.key"
    };
}
pub(super) use room_tables;

/// Reads what [`room_columns`] selects, from column 0 on.
pub(super) fn room_row(row: &Row<'_>) -> rusqlite::Result<RoomRow> {
    let name = room_name(row.get_ref(1)?.as_str()?)?;
    let head: Option<i64> = row.get(5)?;
    let (head, tally) = match head {
        Some(_) => (integer(row, 5)?, tally(row, 6)?),
        None => (0, Tally::start(name.as_str())),
    };
    Ok(RoomRow {
        key: RoomKey(integer(row, 0)?),
        kind: room_kind(row.get(2)?)?,
        title: row.get(3)?,
        members: row.get(4)?,
        name,
        head,
        tally,
    })
}

/// Two columns from `index` on: `messages, hash`.
pub(super) fn tally(row: &Row<'_>, index: usize) -> rusqlite::Result<Tally> {
    let hash: i64 = row.get(index + 1)?;
    Ok(Tally { messages: integer(row, index)?, hash: hash.cast_unsigned() })
}

/// A hash as SQLite keeps it: the same 64 bits.
pub(super) fn hash_bits(tally: Tally) -> i64 {
    tally.hash.cast_signed()
}

/// A column that holds a number which is never negative.
pub(super) fn integer(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(index)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, value))
}

/// A number as SQLite keeps it. Ours stay far below 2^63.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_roles_and_kinds_round_trip() {
        for value in [Role::Banned, Role::Member, Role::Moderator, Role::Owner] {
            assert_eq!(role(role_number(value)).unwrap(), value);
        }
        for value in [RoomKind::Public, RoomKind::Private, RoomKind::Direct] {
            assert_eq!(room_kind(room_kind_number(value)).unwrap(), value);
        }
        for value in [Priority::Critical, Priority::Normal, Priority::Low] {
            assert_eq!(priority(priority_number(value)).unwrap(), value);
        }
        for value in [Status::Offline, Status::Away, Status::Online, Status::Busy] {
            assert_eq!(status(status_number(value)).unwrap(), value);
        }
        for value in Cause::ALL {
            assert_eq!(cause(cause_number(value)).unwrap(), value);
        }
        // The numbers stand in files.
        assert_eq!((cause_number(Cause::Clean), cause_number(Cause::ServerRestart)), (4, 10));
        assert!(status(4).is_err() && cause(11).is_err());
        assert!(role(4).is_err() && room_kind(3).is_err() && priority(3).is_err());
    }
}
