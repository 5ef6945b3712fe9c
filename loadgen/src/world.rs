//! Who takes part in a run: users, rooms, threads, addresses, tokens, and the common clock.
//!
//! Everything is derived from the run's name and a number, so that no table is needed, and names
//! never meet those of another run against the same server.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ahash::RandomState;
use antiphon::engine::rng::Rng;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::dialect::Dialect;

/// The cast and the stage of one run.
pub struct World {
    /// Six characters that no other run has.
    pub run: String,
    /// Number of users; each has one connection.
    pub clients: u32,
    /// Members of a room.
    pub rooms_of: u32,
    /// Driver threads.
    pub threads: u32,
    /// Where the server listens.
    pub target: SocketAddrV4,
    /// The `Host` header.
    pub host: String,
    /// The path of the upgrade, without a query.
    pub path: String,
    /// Source addresses in turn; empty: the kernel's choice.
    pub sources: Vec<Ipv4Addr>,
    /// The same in every thread, so that hashes can be compared.
    pub hasher: RandomState,
    /// Start of every random choice.
    pub seed: u64,
    /// How the server is spoken to.
    pub dialect: Dialect,
    /// Drivers look for completions without a pause, once all are connected.
    pub busy_poll: bool,
    key: EncodingKey,
    token_expires: u64,
    origin: Instant,
}

/// What a [`World`] is made from.
#[derive(Debug, Clone)]
pub struct WorldSpec {
    /// See [`World::clients`].
    pub clients: u32,
    /// See [`World::rooms_of`].
    pub rooms_of: u32,
    /// See [`World::threads`].
    pub threads: u32,
    /// See [`World::target`].
    pub target: SocketAddrV4,
    /// See [`World::host`].
    pub host: String,
    /// See [`World::path`].
    pub path: String,
    /// See [`World::sources`].
    pub sources: Vec<Ipv4Addr>,
    /// See [`World::seed`].
    pub seed: u64,
    /// See [`World::dialect`].
    pub dialect: Dialect,
    /// See [`World::busy_poll`].
    pub busy_poll: bool,
    /// The server's HS256 secret.
    pub secret: Vec<u8>,
}

/// A day: no run outlives its tokens.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    admin: bool,
}

impl World {
    /// A new run.
    pub fn new(spec: WorldSpec) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let salt = now.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(40);
        Self {
            run: run_name(salt),
            clients: spec.clients,
            rooms_of: spec.rooms_of,
            threads: spec.threads,
            target: spec.target,
            host: spec.host,
            path: spec.path,
            sources: spec.sources,
            hasher: RandomState::with_seeds(1, 2, 3, 4),
            seed: spec.seed,
            dialect: spec.dialect,
            busy_poll: spec.busy_poll,
            key: EncodingKey::from_secret(&spec.secret),
            token_expires: (now + TOKEN_TTL).as_secs(),
            origin: Instant::now(),
        }
    }

    /// Nanoseconds since the run began: the clock of every time in a run.
    pub fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Number of rooms.
    pub fn rooms(&self) -> u32 {
        self.clients.div_ceil(self.rooms_of)
    }

    /// The room of a user.
    pub fn room_of(&self, user: u32) -> u32 {
        user / self.rooms_of
    }

    /// The users of a room.
    pub fn members(&self, room: u32) -> Range<u32> {
        let first = room * self.rooms_of;
        first..first.saturating_add(self.rooms_of).min(self.clients)
    }

    /// The thread that drives a user: a room's members share one, unless there are fewer rooms
    /// than threads.
    pub fn thread_of(&self, user: u32) -> u32 {
        if self.rooms() >= self.threads { self.room_of(user) % self.threads } else { user % self.threads }
    }

    /// True when a thread drives members of a room.
    pub fn is_in_room(&self, thread: u32, room: u32) -> bool {
        thread < self.threads && self.members(room).take(self.threads as usize).any(|u| self.thread_of(u) == thread)
    }

    /// The user's name.
    pub fn user_name(&self, user: u32) -> String {
        format!("{}-{user}", self.run)
    }

    /// The user of that name; `None` for a stranger.
    pub fn user_of(&self, name: &[u8]) -> Option<u32> {
        let number = name.strip_prefix(self.run.as_bytes())?.strip_prefix(b"-")?;
        let is_plain = number == b"0" || number.first().is_some_and(|digit| matches!(digit, b'1'..=b'9'));
        std::str::from_utf8(number).ok().filter(|_| is_plain)?.parse().ok()
    }

    /// The room's name.
    pub fn room_name(&self, room: u32) -> String {
        format!("load/{}/{room}", self.run)
    }

    /// The address that a user connects from.
    pub fn source_of(&self, user: u32) -> Option<Ipv4Addr> {
        let count = self.sources.len();
        (count > 0).then(|| self.sources[user as usize % count])
    }

    /// A token of the user, valid for a day.
    pub fn token(&self, user: u32) -> String {
        self.sign(user, false)
    }

    /// The same for a user who may do everything everywhere (claim `admin`).
    pub fn admin_token(&self, user: u32) -> String {
        self.sign(user, true)
    }

    fn sign(&self, user: u32, admin: bool) -> String {
        let name = self.user_name(user);
        let iat = self.token_expires - TOKEN_TTL.as_secs();
        let claims = Claims { sub: &name, iat, exp: self.token_expires, admin };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.key)
            .expect("claims of plain text and integers sign with any HS256 key")
    }
}

fn run_name(salt: u64) -> String {
    let mut rest = Rng::new(salt).next_u64();
    (0..6)
        .map(|_| {
            let digit = (rest % 36) as u32;
            rest /= 36;
            char::from_digit(digit, 36).expect("a digit below 36")
        })
        .collect()
}

/// Connections that one source address makes to one target, well below the kernel's default range
/// of 28,232 ports.
pub const PER_SOURCE: u32 = 16_000;

/// Addresses within 127.0.0.0/8 for so many connections, other ones for another salt, so that ports
/// in TIME_WAIT after the last run are not in the way.
pub fn loopback_sources(clients: u32, salt: u64) -> Vec<Ipv4Addr> {
    let mut rng = Rng::new(salt);
    // The second part 1–254 keeps clear of 127.0.0.x, where servers listen.
    let (b, c) = (1 + rng.below(254) as u8, rng.below(256) as u8);
    (0..clients.div_ceil(PER_SOURCE).max(1))
        .map(|n| Ipv4Addr::new(127, b, c.wrapping_add((n / 254) as u8), 1 + (n % 254) as u8))
        .collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A world for tests.
    pub fn world(clients: u32, rooms_of: u32, threads: u32, target: SocketAddrV4) -> World {
        World::new(WorldSpec {
            clients,
            rooms_of,
            threads,
            target,
            host: target.to_string(),
            path: "/ws".to_owned(),
            sources: Vec::new(),
            seed: 1,
            dialect: Dialect::Antiphon,
            busy_poll: false,
            secret: b"0123456789abcdef0123456789abcdef".to_vec(),
        })
    }

    #[test]
    fn rooms_and_threads_divide_the_users() {
        let target = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        let many = world(25, 10, 2, target);
        assert_eq!(many.rooms(), 3);
        assert_eq!(many.members(2), 20..25);
        let threads: Vec<u32> = (0..25).map(|u| many.thread_of(u)).collect();
        for room in 0..3 {
            assert!(many.members(room).all(|u| threads[u as usize] == room % 2 && many.room_of(u) == room));
        }
        let one = world(100, 100, 4, target);
        assert_eq!((0..100).filter(|u| one.thread_of(*u) == 3).count(), 25);
        assert!((0..4).all(|thread| one.is_in_room(thread, 0)) && !one.is_in_room(4, 0));
        assert!(many.is_in_room(1, 1) && !many.is_in_room(0, 1));
    }

    #[test]
    fn only_a_users_own_name_names_them() {
        let world = world(25, 10, 1, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));
        let of = |number: &str| world.user_of(format!("{}-{number}", world.run).as_bytes());
        assert_eq!(
            [of("0"), of("17"), of("+7"), of("07"), of(""), of("x")],
            [Some(0), Some(17), None, None, None, None]
        );
        assert_eq!(world.user_of(b"mallory"), None);
    }

    #[test]
    fn tokens_verify_with_the_secret() {
        let world = world(2, 1, 1, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));
        let key = jsonwebtoken::DecodingKey::from_secret(b"0123456789abcdef0123456789abcdef");
        let validation = jsonwebtoken::Validation::new(Algorithm::HS256);
        let token = jsonwebtoken::decode::<serde_json::Value>(world.token(1), &key, &validation).unwrap();
        assert_eq!(token.claims["sub"], world.user_name(1).as_str());
        assert!(token.claims.get("admin").is_none());
        let admin = jsonwebtoken::decode::<serde_json::Value>(world.admin_token(1), &key, &validation).unwrap();
        assert_eq!(admin.claims["admin"], true);
    }

    #[test]
    fn sources_are_loopback_and_enough() {
        assert_eq!(loopback_sources(10, 1).len(), 1);
        let many = loopback_sources(100_000, 2);
        assert_eq!(many.len(), 7);
        assert!(many.iter().all(|ip| ip.is_loopback() && ip.octets()[1] != 0));
        assert_eq!(many.iter().collect::<std::collections::HashSet<_>>().len(), 7);
    }
}
