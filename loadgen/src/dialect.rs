//! What other servers speak, as far as the tool needs it to put the same work on them: enter a room,
//! send a message, be acknowledged, get what others sent. Pure.
//!
//! Every dialect carries the same objects (see `benches/peers/`): `room:subscribe` and `message:send`
//! in, `ok` and `message:created` out, the latter with a dense `seq` for each room. So every delivery
//! from any server is verified alike, and only the wrapping differs. What only Antiphon has (tokens,
//! cursors, presence, inboxes) is asked of no other.

use clap::ValueEnum;

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Dialect {
    /// Antiphon's own protocol, antiphon.v1
    #[default]
    Antiphon,
    /// The bare objects as JSON in text frames, no greeting, no users
    Plain,
    /// Socket.IO 4 (protocol 5) over WebSocket alone: events with acknowledgements
    SocketIo,
}

/// Scenarios that need nothing but what every dialect has.
const COMMON: [&str; 5] = ["connect", "idle", "chat", "fanout", "echo"];

impl Dialect {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Antiphon => "antiphon",
            Self::Plain => "plain",
            Self::SocketIo => "socket-io",
        }
    }

    /// The upgrade's path when none is given.
    pub fn path(self) -> &'static str {
        match self {
            Self::Antiphon => "/ws",
            Self::Plain => "/",
            Self::SocketIo => "/socket.io/",
        }
    }

    /// The upgrade's query.
    pub fn query(self) -> &'static str {
        match self {
            Self::Antiphon => "?device=load",
            Self::Plain => "",
            Self::SocketIo => "?EIO=4&transport=websocket",
        }
    }

    /// Refuses scenarios that the dialect has no words for.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn check(self, scenario: &str) -> Result<(), String> {
        if self == Self::Antiphon || COMMON.contains(&scenario) {
            return Ok(());
        }
        Err(format!("--dialect {} has no {scenario}: it knows {}", self.name(), COMMON.join(", ")))
    }
}

/// A packet of Engine.IO 4, and of Socket.IO 5 within it.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// The transport stands: the namespace may be asked for.
    Open,
    /// The namespace is entered.
    Connected,
    /// To be answered with [`PONG`].
    Ping,
    /// `42["name",{…}]`
    Event {
        /// The event's name.
        name: &'a [u8],
        /// Its one argument.
        object: &'a [u8],
    },
    /// `43<id>[{…}]`
    Ack {
        /// That of the event acknowledged.
        id: u64,
        /// The one argument of the acknowledgement.
        object: &'a [u8],
    },
    /// The server ends it: `1` or `41`.
    Close,
}

/// Asks for the default namespace.
pub const ENTER: &[u8] = b"40";
/// Answers a ping.
pub const PONG: &[u8] = b"3";

/// Reads a packet; `None` when it is none that the tool can expect.
pub fn packet(bytes: &[u8]) -> Option<Packet<'_>> {
    match bytes {
        [b'0', ..] => Some(Packet::Open),
        [b'1'] | [b'4', b'1', ..] => Some(Packet::Close),
        b"2" => Some(Packet::Ping),
        [b'4', b'0', ..] => Some(Packet::Connected),
        [b'4', b'2', b'[', b'"', rest @ .., b']'] => {
            let end = rest.iter().position(|byte| *byte == b'"')?;
            let object = rest[end + 1..].strip_prefix(b",")?;
            Some(Packet::Event { name: &rest[..end], object })
        }
        [b'4', b'3', rest @ .., b']'] => {
            let digits = rest.iter().position(|byte| *byte == b'[')?;
            let id = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
            Some(Packet::Ack { id, object: &rest[digits + 1..] })
        }
        _ => None,
    }
}

/// Writes an event that asks for an acknowledgement. `members` are those of its one argument, the
/// first of which is its `type`: that one goes where Socket.IO has it.
pub fn push_event(out: &mut Vec<u8>, id: u64, members: &[u8]) {
    let cut = members.iter().position(|byte| *byte == b',').unwrap_or(members.len());
    let kind = members[..cut].strip_prefix(b"\"type\":").unwrap_or(b"\"\"");
    out.extend_from_slice(b"42");
    antiphon::protocol::encode::integer(out, id);
    for part in [b"[", kind, b",{", members.get(cut + 1..).unwrap_or(b""), b"}]"] {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_apart() {
        let cases: [(&[u8], Option<Packet<'_>>); 10] = [
            (b"0{\"sid\":\"x\",\"pingInterval\":25000}", Some(Packet::Open)),
            (b"40{\"sid\":\"y\"}", Some(Packet::Connected)),
            (b"2", Some(Packet::Ping)),
            (b"1", Some(Packet::Close)),
            (b"41", Some(Packet::Close)),
            (b"42[\"a:b\",{\"x\":[1]}]", Some(Packet::Event { name: b"a:b", object: b"{\"x\":[1]}" })),
            (b"4312[{\"type\":\"ok\"}]", Some(Packet::Ack { id: 12, object: b"{\"type\":\"ok\"}" })),
            (b"43[{}]", None),
            (b"42[\"a\"]", None),
            (b"", None),
        ];
        for (bytes, wanted) in cases {
            assert_eq!(packet(bytes), wanted, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn events_carry_their_name_in_front() {
        let mut out = Vec::new();
        push_event(&mut out, 7, b"\"type\":\"message:send\",\"room\":\"r\",\"body\":\"a,b\"");
        assert_eq!(out, b"427[\"message:send\",{\"room\":\"r\",\"body\":\"a,b\"}]");
    }

    #[test]
    fn only_antiphon_has_every_scenario() {
        assert!(Dialect::Antiphon.check("resume").is_ok() && Dialect::SocketIo.check("chat").is_ok());
        assert!(Dialect::Plain.check("resume").unwrap_err().contains("--dialect plain"));
    }
}
