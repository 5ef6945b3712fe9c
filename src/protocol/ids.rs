//! Names and numbers that travel on the wire, each a type of its own.
//!
//! A value of one of these types has been checked: whoever holds a [`UserId`] need not ask again
//! whether it is 1–64 characters of the allowed set.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Why a text is not a name of the wanted kind. The text itself is not kept: it is a peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadName {
    /// What was to be named: `"user"`, `"device"` or `"room"`.
    pub what: &'static str,
    /// The rule in words, fit for an error message.
    pub rule: &'static str,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {} is {}", self.what, self.rule)
    }
}

impl std::error::Error for BadName {}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $is_valid:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` and keeps a copy of it.
            ///
            /// # Errors
            /// [`BadName`] with the rule that `text` breaks.
            pub fn parse(text: &str) -> Result<Self, BadName> {
                if $is_valid(text) {
                    Ok(Self(Arc::from(text)))
                } else {
                    Err(Self::bad())
                }
            }

            /// The error for a text that is no such name.
            pub const fn bad() -> BadName {
                BadName { what: $what, rule: $rule }
            }

            /// True when `text` keeps the rule of this kind of name.
            pub fn is_valid(text: &str) -> bool {
                $is_valid(text)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A user: the `sub` claim of the token. 1–64 of `[A-Za-z0-9._@-]`.
    UserId,
    "user",
    "1 to 64 of A-Z a-z 0-9 . _ @ -",
    is_user
);
name!(
    /// One device of a user. 1–64 of `[A-Za-z0-9._-]`.
    DeviceId,
    "device",
    "1 to 64 of A-Z a-z 0-9 . _ -",
    is_device
);
name!(
    /// The public name of a room: 1–128 bytes of UTF-8 without control characters, line or
    /// paragraph separators, direction marks, `*` (it ends a pattern), or white space at an end.
    RoomName,
    "room",
    "1 to 128 bytes without control characters, direction marks, '*' or outer white space",
    is_room
);

fn is_user(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'@' | b'-'))
}

fn is_device(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_room(text: &str) -> bool {
    let ends_are_plain = || !text.starts_with(char::is_whitespace) && !text.ends_with(char::is_whitespace);
    (1..=128).contains(&text.len()) && ends_are_plain() && !text.chars().any(is_misleading)
}

/// Characters that would let a name forge a log line, a pattern, or the direction of a text.
fn is_misleading(c: char) -> bool {
    c.is_control()
        || matches!(c, '*' | '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{061c}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Number of an entry within its room, dense from 1. 0 means "before the first".
pub type Seq = u64;

/// Number of an entry within the whole log, dense from 1. 0 means "before the first".
pub type Position = u64;

/// Milliseconds since the Unix epoch.
pub type UnixMillis = u64;

/// The store's number of a room, given at its creation and never reused. Not on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomKey(pub u64);

/// Which history a [`Seq`] belongs to. It changes only when the log may have lost entries
/// (a new database, a restored backup); a cursor of another epoch cannot be honoured.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// An epoch from its text, as kept in the database.
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The epoch as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a user is in a room. The order is by power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Shut out: not a member, may neither read nor write, whatever the room's kind.
    Banned,
    /// May read and write.
    Member,
    /// May also invite, kick and ban members.
    Moderator,
    /// May also give and take roles. The creator starts as owner.
    Owner,
}

impl Role {
    /// The name on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Banned => "banned",
            Self::Member => "member",
            Self::Moderator => "moderator",
            Self::Owner => "owner",
        }
    }

    /// The role of that name, if there is one.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Banned, Self::Member, Self::Moderator, Self::Owner].into_iter().find(|role| role.as_str() == text)
    }

    /// True for every role but [`Role::Banned`].
    pub const fn is_member(self) -> bool {
        !matches!(self, Self::Banned)
    }
}

/// Who may come into a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RoomKind {
    /// Anyone may read, write and join.
    Public,
    /// Members only; one becomes a member by invitation.
    Private,
    /// Private, between the users named at its creation.
    Direct,
}

impl RoomKind {
    /// The name on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Direct => "direct",
        }
    }

    /// The kind of that name, if there is one.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Public, Self::Private, Self::Direct].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Which lane of an outbox a frame takes. The order is by urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Never dropped before the connection itself is closed.
    Critical,
    /// Dropped only with a `gap` in its place.
    #[default]
    Normal,
    /// Merged or dropped first.
    Low,
}

impl Priority {
    /// The name on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// The priority of that name, if there is one.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Critical, Self::Normal, Self::Low].into_iter().find(|p| p.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_rules() {
        for good in ["a", "alice", "a.b_c@d-e", &"x".repeat(64)] {
            assert!(UserId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "ä", "a/b", "a\n", &"x".repeat(65)] {
            assert_eq!(UserId::parse(bad), Err(UserId::bad()), "{bad}");
        }
        assert!(DeviceId::parse("phone-1").is_ok());
        assert!(DeviceId::parse("phone@1").is_err());
    }

    #[test]
    fn room_names_are_liberal_but_cannot_mislead() {
        for good in ["general", "team/ops", "größe", "a b", "r:1", "日本"] {
            assert!(RoomName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", " a", "a ", "a\nb", "a\u{1b}[31m", "a*", "\u{202e}x", "a\u{2028}b", &"é".repeat(65)] {
            assert!(RoomName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn roles_and_kinds_round_trip() {
        for role in [Role::Banned, Role::Member, Role::Moderator, Role::Owner] {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert!(Role::Owner > Role::Moderator && Role::Member > Role::Banned);
        assert_eq!(RoomKind::parse("direct"), Some(RoomKind::Direct));
        assert_eq!(RoomKind::parse("Public"), None);
        assert_eq!(Priority::parse("low"), Some(Priority::Low));
    }
}
