//! Claims → what a session may do. The one place that answers "may they?".
//!
//! A token's `rooms` claim narrows, it never widens: a private room needs membership whatever the
//! claim says. Rights of the *role* (who may kick whom) are decided by the persistence core, which
//! alone sees roles in log order (see `sequencer`).

use super::event::{Claims, Revocation, RoomGrants};
use crate::protocol::ids::{Role, RoomKind, UnixMillis, UserId};
use std::collections::HashMap;

/// What a token allows, kept with its session.
#[derive(Debug, Clone, PartialEq)]
pub struct Rights {
    /// May act in every room.
    pub admin: bool,
    /// Patterns and "may write"; none: no narrowing.
    pub rooms: Option<RoomGrants>,
}

/// Names that follow each other, in the order of their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The first that may be one of them.
    pub from: Box<str>,
    /// The first after them that is none; none: there is no end.
    pub until: Option<Box<str>>,
}

impl Names {
    /// What a pattern of a token stands for.
    fn of(pattern: &str) -> Self {
        match pattern.strip_suffix('*') {
            Some(start) => Self { from: start.into(), until: after_all_with(start) },
            None => Self { from: pattern.into(), until: Some(after(pattern)) },
        }
    }

    /// True when `name` is one of them.
    pub fn contain(&self, name: &str) -> bool {
        *self.from <= *name && self.until.as_deref().is_none_or(|until| name < until)
    }
}

/// The least text after `name`. No name has it: names are without control characters.
pub fn after(name: &str) -> Box<str> {
    format!("{name}\0").into()
}

/// The least text after all that begin with `start`, if there is one.
fn after_all_with(start: &str) -> Option<Box<str>> {
    let (rest, last) = (start.char_indices().next_back()).map(|(at, last)| (&start[..at], last))?;
    // The order of UTF-8 is that of its characters.
    match (last..=char::MAX).nth(1) {
        Some(next) => Some(format!("{rest}{next}").into()),
        None => after_all_with(rest),
    }
}

/// What somebody wants to do in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Subscribe, history, members.
    Read,
    /// Send, and everything that makes an entry.
    Write,
}

impl Rights {
    /// The rights in `claims`.
    pub fn of(claims: &Claims) -> Self {
        Self { admin: claims.admin, rooms: claims.rooms.clone() }
    }

    /// True when the token covers this in `room`, whatever the room is.
    pub fn covers(&self, room: &str, want: Want) -> bool {
        let Some(rooms) = &self.rooms else { return true };
        rooms.iter().any(|(pattern, may_write)| {
            let fits = match pattern.strip_suffix('*') {
                Some(prefix) => room.starts_with(prefix),
                None => room == &**pattern,
            };
            fits && (*may_write || want == Want::Read)
        })
    }

    /// The names that the token covers to be read: ascending, each once.
    pub fn names(&self) -> Vec<Names> {
        let Some(rooms) = &self.rooms else { return vec![Names::of("*")] };
        let mut patterns: Vec<&str> = rooms.iter().map(|(pattern, _)| &**pattern).collect();
        // What begins with the same stands together, the widest first.
        patterns.sort_unstable_by_key(|pattern| (pattern.trim_end_matches('*'), !pattern.ends_with('*')));
        let mut all: Vec<Names> = patterns.into_iter().map(Names::of).collect();
        // The names of two patterns are apart, or those of one are among the other's.
        all.dedup_by(|names, before| before.contain(&names.from));
        all
    }

    /// True when a user with `role` may do this in a room of that kind and name.
    pub fn may(&self, room: &str, kind: RoomKind, role: Option<Role>, want: Want) -> bool {
        let stands = match role {
            Some(Role::Banned) => false,
            Some(_) => true,
            None => self.admin || kind == RoomKind::Public,
        };
        stands && self.covers(room, want)
    }
}

/// How much longer than its token a revocation is remembered, ms: more than any leeway for clocks.
pub const REVOKED_SLACK_MS: UnixMillis = 3_600_000;
const FORGET_EVERY_MS: UnixMillis = 600_000;

/// Tokens that are no longer valid, as every shard knows them.
#[derive(Debug, Default)]
pub struct Revoked {
    /// Until when each is remembered; `u64::MAX`: for ever.
    jtis: HashMap<Box<str>, UnixMillis, ahash::RandomState>,
    /// When expired ones are looked for next.
    forget_at: UnixMillis,
    users: HashMap<UserId, u64, ahash::RandomState>,
}

impl Revoked {
    /// Remembers one more.
    pub fn add(&mut self, revocation: &Revocation) {
        match revocation {
            Revocation::Jti(jti) => self.add_jti(jti, UnixMillis::MAX),
            Revocation::JtiUntil(jti, expires_ts) => self.add_jti(jti, expires_ts.saturating_add(REVOKED_SLACK_MS)),
            Revocation::UserBefore(user, second) => {
                let before = self.users.entry(user.clone()).or_default();
                *before = (*before).max(*second);
            }
        }
    }

    fn add_jti(&mut self, jti: &str, until: UnixMillis) {
        let kept = self.jtis.entry(jti.into()).or_default();
        *kept = (*kept).max(until);
    }

    /// Lets go of tokens that are refused for their age anyhow. Looks at all of them, now and then.
    pub fn forget(&mut self, now: UnixMillis) {
        if now >= self.forget_at {
            self.forget_at = now + FORGET_EVERY_MS;
            self.jtis.retain(|_, until| *until > now);
        }
    }

    /// How many single tokens are remembered.
    pub fn jtis(&self) -> usize {
        self.jtis.len()
    }

    /// True when a token with these claims was revoked.
    pub fn covers(&self, user: &UserId, issued_at: Option<u64>, jti: Option<&str>) -> bool {
        jti.is_some_and(|jti| self.jtis.contains_key(jti))
            || self.users.get(user).is_some_and(|before| issued_at.is_none_or(|at| at <= *before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(rooms: &[(&str, bool)]) -> Rights {
        Rights { admin: false, rooms: Some(rooms.iter().map(|(p, w)| (Box::from(*p), *w)).collect()) }
    }

    #[test]
    fn rooms_claims_narrow_and_never_widen() {
        let all = Rights { admin: false, rooms: None };
        let some = rights(&[("news-*", false), ("general", true)]);
        let admin = Rights { admin: true, rooms: None };
        use RoomKind::{Direct, Private, Public};
        use Want::{Read, Write};
        let cases = [
            (&all, "x", Public, None, Write, true),
            (&all, "x", Private, None, Read, false),
            (&all, "x", Private, Some(Role::Member), Write, true),
            (&all, "x", Direct, Some(Role::Member), Write, true),
            (&all, "x", Public, Some(Role::Banned), Read, false),
            (&some, "news-1", Public, None, Read, true),
            (&some, "news-1", Public, None, Write, false),
            (&some, "news", Public, None, Read, false),
            (&some, "general", Public, None, Write, true),
            (&some, "general", Private, None, Read, false),
            (&some, "other", Public, Some(Role::Owner), Read, false),
            (&admin, "x", Private, None, Write, true),
            (&admin, "x", Private, Some(Role::Banned), Read, false),
        ];
        for (who, room, kind, role, want, expected) in cases {
            assert_eq!(who.may(room, kind, role, want), expected, "{who:?} {room} {kind:?} {role:?} {want:?}");
        }
    }

    #[test]
    fn the_names_of_a_token_are_those_that_it_covers() {
        let ends = ["ab", "ab*", "a*", "a\u{10ffff}*", "\u{10ffff}*", "\u{d7ff}*", "b", "*", "abc*", "é*", "a", "zz*"];
        let names =
            ["a", "ab", "abc", "abd", "b", "ba", "a\u{10ffff}", "a\u{10ffff}x", "\u{e000}", "\u{d7ff}x", "é", "ê", "z"];
        for set in 0..1_u32 << ends.len() {
            let patterns: Vec<_> = (0..ends.len()).filter(|n| set >> n & 1 == 1).map(|n| (ends[n], false)).collect();
            let rights = rights(&patterns);
            let ranges = rights.names();
            for name in names {
                let found = ranges.iter().filter(|names| names.contain(name)).count();
                assert_eq!(found, usize::from(rights.covers(name, Want::Read)), "{name:?} in {patterns:?}: {ranges:?}");
            }
            assert!(ranges.is_sorted_by(|a, b| a.from < b.from));
        }
        let all = Rights { admin: false, rooms: None }.names();
        assert!(all.len() == 1 && all[0].contain("\u{10ffff}"));
        assert!(Names::of("room").contain("room") && !Names::of("room").contain("room!"));
    }

    #[test]
    fn a_revocation_is_forgotten_some_time_after_its_token_expired() {
        let alice = UserId::parse("alice").unwrap();
        let mut revoked = Revoked::default();
        let now = 1_600_000_000_000;
        revoked.add(&Revocation::Jti("for ever".into()));
        for (jti, expires_ts) in
            [("soon", now), ("later", now + REVOKED_SLACK_MS), ("longest", now), ("longest", now * 2)]
        {
            revoked.add(&Revocation::JtiUntil(jti.into(), expires_ts));
        }
        revoked.forget(now);
        assert_eq!(revoked.jtis(), 4, "clocks differ: not at once");
        revoked.forget(now + REVOKED_SLACK_MS);
        let covers = |jti| revoked.covers(&alice, Some(1), Some(jti));
        assert!(!covers("soon") && covers("later") && covers("longest") && covers("for ever"));
    }

    #[test]
    fn revocations_cover_a_token_or_everything_before() {
        let alice = UserId::parse("alice").unwrap();
        let mut revoked = Revoked::default();
        assert!(!revoked.covers(&alice, Some(10), Some("j1")));
        revoked.add(&Revocation::Jti("j1".into()));
        assert!(revoked.covers(&alice, Some(10), Some("j1")));
        assert!(!revoked.covers(&alice, Some(10), Some("j2")));
        revoked.add(&Revocation::UserBefore(alice.clone(), 20));
        revoked.add(&Revocation::UserBefore(alice.clone(), 15));
        assert!(revoked.covers(&alice, Some(20), None));
        assert!(revoked.covers(&alice, None, None));
        assert!(!revoked.covers(&alice, Some(21), None));
    }
}
