//! Life of one connection, from its upgrade to its end.
//!
//! ```text
//!            Loaded              Drain
//!  Loading ─────────► Open ───────────────► Draining
//!     │                │                        │
//!     └────────────────┴──── End ───────────────┴──► (forgotten)
//! ```
//! A session that ends is removed at once: a late answer finds no session of its generation and is
//! dropped. Frames arrive only in `Open` and `Draining`, since a loading connection is parked.

use super::auth::Rights;
use super::blocks::Blocks;
use super::event::{Claims, ConnKey, Opening};
use super::limits::Bucket;
use super::presence::DevicePresence;
use super::rooms::RoomIdx;
use super::users::UserIdx;
use crate::protocol::error::Refusal;
use crate::protocol::ids::{DeviceId, UnixMillis};

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its user is being read from the store; it has not had its `hello`.
    Loading,
    /// It may do everything.
    Open,
    /// It has had its `goaway`; commands still work until the end.
    Draining,
}

/// What can happen to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The user is known.
    Loaded,
    /// The server is being stopped.
    Drain,
}

impl State {
    /// The transition table; `None` when the step has no meaning in this state.
    pub const fn on(self, step: Step) -> Option<Self> {
        match (self, step) {
            (Self::Loading, Step::Loaded) => Some(Self::Open),
            (Self::Open, Step::Drain) => Some(Self::Draining),
            // A loading session is told after its `hello`.
            (Self::Loading | Self::Draining, Step::Drain) | (Self::Open | Self::Draining, Step::Loaded) => None,
        }
    }
}

/// One authenticated connection.
#[derive(Debug)]
pub struct Session {
    /// Which connection.
    pub conn: ConnKey,
    /// Where it stands.
    pub state: State,
    /// Whose it is.
    pub user: UserIdx,
    /// From which device.
    pub device: DeviceId,
    /// Names the session in `hello` and in logs.
    pub id: u64,
    /// What its token allows.
    pub rights: Rights,
    /// `jti` of its token.
    pub jti: Option<Box<str>>,
    /// `iat` of its token, seconds; 0 for a token without: older than every revocation.
    pub issued_at: u64,
    /// When its token ends.
    pub expires_at: UnixMillis,
    /// When a byte last came from it; or when it was asked for one, if that was late.
    pub heard_at: UnixMillis,
    /// When its next ping is due.
    pub ping_at: UnixMillis,
    /// The one deadline in the timers that counts.
    pub timer_at: UnixMillis,
    /// Rooms it listens to, in no order.
    pub subscriptions: Vec<RoomIdx>,
    /// Its command rate.
    pub bucket: Bucket,
    /// Bad commands in a row.
    pub errors: u32,
    /// Set when the next frame comes again, after a load that succeeded or was refused. It was
    /// counted the first time.
    pub replay: Option<Box<Result<(), Refusal>>>,
    /// What it counts for in its user's presence.
    pub presence: DevicePresence,
}

// 15,000 idle connections must cost little: a change here is a change of memory for each of them.
const _: () = assert!(size_of::<Option<Session>>() <= 192);

impl Session {
    /// A session that begins.
    pub fn new(conn: ConnKey, opening: Opening, user: UserIdx, id: u64, now: UnixMillis) -> Self {
        let Opening { claims, device, .. } = opening;
        Self {
            conn,
            state: State::Loading,
            user,
            device,
            id,
            rights: Rights::of(&claims),
            jti: claims.jti,
            issued_at: claims.issued_at.unwrap_or(0),
            expires_at: claims.expires_at,
            heard_at: now,
            ping_at: 0,
            timer_at: 0,
            subscriptions: Vec::new(),
            bucket: Bucket::default(),
            errors: 0,
            replay: None,
            presence: DevicePresence::new(now),
        }
    }

    /// Goes on under a new token of the same user.
    pub fn renew(&mut self, claims: Claims) {
        self.rights = Rights::of(&claims);
        self.jti = claims.jti;
        self.issued_at = claims.issued_at.unwrap_or(0);
        self.expires_at = claims.expires_at;
    }

    /// True when this connection listens to `room`.
    pub fn is_subscribed(&self, room: RoomIdx) -> bool {
        self.subscriptions.contains(&room)
    }
}

/// The sessions of one shard, dense by connection slot: those who are pinged together lie together.
#[derive(Debug, Default)]
pub struct Sessions {
    slots: Blocks<Option<Session>>,
    count: usize,
}

impl Sessions {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The session of this connection, unless it is over.
    pub fn get(&self, conn: ConnKey) -> Option<&Session> {
        self.slots.get(conn.slot)?.as_ref().filter(|session| session.conn == conn)
    }

    /// Likewise, to change it.
    pub fn get_mut(&mut self, conn: ConnKey) -> Option<&mut Session> {
        self.slots.get_mut(conn.slot)?.as_mut().filter(|session| session.conn == conn)
    }

    /// Puts a session in its slot.
    pub fn insert(&mut self, session: Session) {
        let slot = session.conn.slot;
        while self.slots.count() <= slot as usize {
            self.slots.push(None);
        }
        let place = self.slots.get_mut(slot).expect("there are that many now");
        debug_assert!(place.is_none(), "a slot is given out again only after its session ended");
        *place = Some(session);
        self.count += 1;
    }

    /// Takes a session out of its slot.
    pub fn remove(&mut self, conn: ConnKey) -> Option<Session> {
        let session = self.slots.get_mut(conn.slot)?.take_if(|session| session.conn == conn)?;
        self.count -= 1;
        Some(session)
    }

    /// Every session, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slots.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_step() {
        use State::{Draining, Loading, Open};
        let table = [
            (Loading, Step::Loaded, Some(Open)),
            (Loading, Step::Drain, None),
            (Open, Step::Loaded, None),
            (Open, Step::Drain, Some(Draining)),
            (Draining, Step::Loaded, None),
            (Draining, Step::Drain, None),
        ];
        for (state, step, next) in table {
            assert_eq!(state.on(step), next, "{state:?} on {step:?}");
        }
    }
}
