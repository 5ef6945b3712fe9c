//! Dead letters: what could not be applied, kept for a person to look at, replay or throw away.
//!
//! Two kinds. An inbox item that was sent [`ATTEMPTS_MAX`](super::inbox::ATTEMPTS_MAX) times without
//! an acknowledgement; and a poison entry, an append whose part of a transaction failed by itself,
//! apart from its neighbours, again. The store has no index or derived row that is written apart from
//! its entry: what fails there makes the entry a poison one.
//!
//! A letter's payload is a JSON object from which the entry can be made again, for items and
//! messages; of every other entry it says only what it was, since its author was told that it failed
//! and its right moment has passed. A replay is an append like any other: the letter goes away in the
//! transaction that applies it, and stays when it is refused, with one more attempt when it fails again.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::event::{Audience, Entry, NewMessage};
use super::inbox::NewItem;
use crate::protocol::encode::{field_integer, field_raw, field_string, string};
use crate::protocol::ids::{Priority, RoomKey, RoomName, Seq, UnixMillis, UserId};

/// Number of a dead letter, given by the store, ascending, never reused.
pub type LetterId = u64;

/// Letters of one page.
pub const PAGE_MAX: u32 = 500;
/// Largest payload, bytes. A longer one is left out, and its letter cannot be replayed.
pub const PAYLOAD_BYTES_MAX: usize = 32 * 1024;
/// Why inbox items die.
pub const NOT_ACKNOWLEDGED: &str = "not acknowledged after the last attempt";
/// Longest reason, bytes.
pub const REASON_BYTES_MAX: usize = 256;

/// What could not be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadKind {
    /// An inbox item past its attempts.
    Inbox,
    /// An entry that the store could not write.
    Entry,
}

impl DeadKind {
    /// The name in the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbox => "inbox",
            Self::Entry => "entry",
        }
    }

    /// The kind of that name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Inbox, Self::Entry].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// One dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its number.
    pub id: LetterId,
    /// What it is.
    pub kind: DeadKind,
    /// Whose inbox, or who wanted the entry; none: the server or the admin API.
    pub user: Option<UserId>,
    /// Why it could not be applied.
    pub reason: Box<str>,
    /// How often it was tried, replays included.
    pub attempts: u32,
    /// When it was first wanted.
    pub first_ts: UnixMillis,
    /// When it was given up, or last replayed in vain.
    pub last_ts: UnixMillis,
    /// A JSON object.
    pub payload: Box<str>,
}

/// Which letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadFilter {
    /// This one.
    pub id: Option<LetterId>,
    /// Of this kind.
    pub kind: Option<DeadKind>,
    /// Of this user.
    pub user: Option<UserId>,
    /// Given up before this time.
    pub before: Option<UnixMillis>,
}

impl DeadFilter {
    /// Just one.
    pub fn one(id: LetterId) -> Self {
        Self { id: Some(id), ..Self::default() }
    }

    /// True when `letter` is meant.
    pub fn fits(&self, letter: &DeadLetter) -> bool {
        self.id.is_none_or(|id| id == letter.id)
            && self.kind.is_none_or(|kind| kind == letter.kind)
            && self.user.as_ref().is_none_or(|user| letter.user.as_ref() == Some(user))
            && self.before.is_none_or(|before| letter.last_ts < before)
    }
}

/// What is to be done with letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadAct {
    /// Apply this one, and let it go.
    Replay(LetterId),
    /// Throw these away.
    Purge(DeadFilter),
}

/// What a batch does to the letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadChange {
    /// Applied in this batch.
    Replayed(LetterId),
    /// Thrown away.
    Purged(DeadFilter),
}

/// Every field of every payload: which are there is said by `what`.
#[derive(Deserialize)]
struct Payload<'a> {
    what: Box<str>,
    name: Option<Box<str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    priority: Option<Box<str>>,
    from: Option<Box<str>>,
    room: Option<Box<str>>,
    author: Option<Box<str>>,
    #[serde(default)]
    by_admin: bool,
    client_id: Option<Box<str>>,
    #[serde(borrow)]
    fields: Option<&'a RawValue>,
    thread: Option<Seq>,
    audience: Option<Box<str>>,
    mentions: Option<Vec<Box<str>>>,
}

/// What a payload is made into again.
#[derive(Debug)]
pub enum Again {
    /// An item for a user's inbox.
    Item(NewItem),
    /// A message for the room of that name; its key is to be filled in.
    Message(RoomName, NewMessage),
}

/// The payload of an inbox item.
pub fn item_payload(name: &str, data: &str, priority: Priority, from: Option<&str>) -> Box<str> {
    let mut out = b"{\"what\":\"item\"".to_vec();
    field_string(&mut out, "name", name);
    field_raw(&mut out, "data", data.as_bytes());
    field_string(&mut out, "priority", priority.as_str());
    if let Some(from) = from {
        field_string(&mut out, "from", from);
    }
    ended(out)
}

/// The payload of an entry that could not be written. `room_of` tells a room's name by its key.
pub fn entry_payload(entry: &Entry, room: Option<&str>) -> Box<str> {
    let payload = match entry {
        Entry::Notify { item, .. } => {
            item_payload(&item.name, &item.data, item.priority, item.from.as_ref().map(UserId::as_str))
        }
        Entry::Message(message) => message_payload(message, room.unwrap_or_default()),
        other => described(other, room),
    };
    if payload.len() <= PAYLOAD_BYTES_MAX { payload } else { described(entry, room) }
}

fn message_payload(message: &NewMessage, room: &str) -> Box<str> {
    let mut out = b"{\"what\":\"message\"".to_vec();
    field_string(&mut out, "room", room);
    field_string(&mut out, "author", message.author.as_str());
    if message.by_admin {
        field_raw(&mut out, "by_admin", b"true");
    }
    if let Some(client_id) = &message.client_id {
        field_string(&mut out, "client_id", client_id);
    }
    field_raw(&mut out, "fields", format!("{{{}}}", message.fields).as_bytes());
    if let Some(thread) = message.thread {
        field_integer(&mut out, "thread", thread);
    }
    field_string(&mut out, "priority", message.priority.as_str());
    if let Some(audience) = &message.audience {
        field_string(&mut out, "audience", &audience.to_text());
    }
    field_raw(&mut out, "mentions", b"[");
    for (at, user) in message.mentions.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        string(&mut out, user.as_str());
    }
    out.push(b']');
    ended(out)
}

/// What an entry was, without its content.
fn described(entry: &Entry, room: Option<&str>) -> Box<str> {
    let mut out = b"{\"what\":\"other\"".to_vec();
    field_string(&mut out, "entry", name_of(entry));
    if let Some(room) = room {
        field_string(&mut out, "room", room);
    }
    ended(out)
}

fn ended(mut out: Vec<u8>) -> Box<str> {
    out.push(b'}');
    String::from_utf8(out).expect("made of texts and escapes").into_boxed_str()
}

/// The name of a kind of entry, for people.
pub fn name_of(entry: &Entry) -> &'static str {
    match entry {
        Entry::Message(_) => "message",
        Entry::Repeat { .. } => "repeat",
        Entry::CreateRoom { .. } => "create_room",
        Entry::Join { .. } => "join",
        Entry::Leave { .. } => "leave",
        Entry::Manage { .. } => "manage",
        Entry::Read { .. } => "read",
        Entry::Delivered { .. } => "delivered",
        Entry::Amend(_) => "amend",
        Entry::Revoke(_) => "revoke",
        Entry::Notify { .. } => "notify",
        Entry::InboxAck { .. } => "inbox_ack",
        Entry::InboxTried { .. } => "inbox_tried",
        Entry::PresenceNews(_) => "presence_news",
        Entry::InboxDead { .. } => "inbox_dead",
        Entry::Dead(_) => "dead_letters",
        Entry::Mend { .. } => "mend",
    }
}

/// Whose entry it is.
pub fn user_of(entry: &Entry) -> Option<&UserId> {
    match entry {
        Entry::Message(message) => Some(&message.author),
        Entry::Repeat { author, .. } => Some(author),
        Entry::CreateRoom { creator, .. } => Some(creator),
        Entry::Join { user, .. }
        | Entry::Leave { user, .. }
        | Entry::Read { user, .. }
        | Entry::Delivered { user, .. }
        | Entry::InboxAck { user, .. }
        | Entry::InboxTried { user, .. }
        | Entry::InboxDead { user, .. } => Some(user),
        Entry::Manage { by, .. } => Some(by),
        Entry::Amend(amend) => Some(&amend.by),
        Entry::Notify { item, .. } => Some(&item.user),
        Entry::Revoke(_) | Entry::Dead(_) | Entry::PresenceNews(_) | Entry::Mend { .. } => None,
    }
}

impl DeadLetter {
    /// What it was, made again. `None`: the payload does not say enough.
    pub fn again(&self) -> Option<Again> {
        let payload: Payload<'_> = serde_json::from_str(&self.payload).ok()?;
        match &*payload.what {
            "item" => self.item_again(payload).map(Again::Item),
            "message" => message_again(payload).map(|(room, message)| Again::Message(room, message)),
            _ => None,
        }
    }

    fn item_again(&self, payload: Payload<'_>) -> Option<NewItem> {
        Some(NewItem {
            user: self.user.clone()?,
            name: payload.name?.into(),
            data: payload.data?.get().into(),
            priority: Priority::parse(&payload.priority?)?,
            // It had its time: it gets that of an item without one of its own.
            ttl_ms: None,
            from: payload.from.map(|from| UserId::parse(&from)).transpose().ok()?,
            covers: None,
        })
    }
}

fn message_again(payload: Payload<'_>) -> Option<(RoomName, NewMessage)> {
    let audience = match payload.audience {
        Some(text) => Some(Audience::from_text(&text)?),
        None => None,
    };
    let mentions = payload.mentions?;
    let message = NewMessage {
        room: RoomKey(0),
        author: UserId::parse(&payload.author?).ok()?,
        by_admin: payload.by_admin,
        client_id: payload.client_id,
        fields: payload.fields?.get().strip_prefix('{')?.strip_suffix('}')?.into(),
        thread: payload.thread,
        audience,
        priority: Priority::parse(&payload.priority?)?,
        mentions: mentions.iter().map(|user| UserId::parse(user)).collect::<Result<_, _>>().ok()?,
        // Its author has gone on since.
        reads: false,
    };
    Some((RoomName::parse(&payload.room?).ok()?, message))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(name).unwrap()
    }

    fn letter(kind: DeadKind, whose: &str, payload: Box<str>) -> DeadLetter {
        let (reason, user) = ("r".into(), Some(user(whose)));
        DeadLetter { id: 1, kind, user, reason, attempts: 2, first_ts: 5, last_ts: 9, payload }
    }

    #[test]
    fn a_message_is_the_same_when_made_again() {
        let message = NewMessage {
            room: RoomKey(7),
            author: user("ann"),
            by_admin: true,
            client_id: Some("c \"1\"".into()),
            fields: r#""body":"h\u00e9 }{","meta":{"n":1.50,"big":12345678901234567890},"trace":"00""#.into(),
            thread: Some(3),
            audience: Some(Arc::new(Audience::Only([user("bob")].into()))),
            priority: Priority::Critical,
            mentions: [user("bob"), user("eve")].into(),
            reads: false,
        };
        let payload = entry_payload(&Entry::Message(message.clone()), Some("a room/ü"));
        let Some(Again::Message(room, again)) = letter(DeadKind::Entry, "ann", payload).again() else { panic!() };
        assert_eq!(room.as_str(), "a room/ü");
        assert_eq!(format!("{:?}", NewMessage { room: RoomKey(7), ..again }), format!("{message:?}"));
    }

    #[test]
    fn an_item_is_the_same_when_made_again_and_other_entries_are_only_described() {
        let payload = item_payload("poke", "{\"n\": [1.0]}", Priority::Low, Some("ann"));
        let Some(Again::Item(item)) = letter(DeadKind::Inbox, "bob", payload).again() else { panic!() };
        assert_eq!((&*item.name, &*item.data, item.priority), ("poke", "{\"n\": [1.0]}", Priority::Low));
        assert_eq!((item.user, item.from), (user("bob"), Some(user("ann"))));
        let read = Entry::Read { room: RoomKey(1), user: user("bob"), seq: 3 };
        let payload = entry_payload(&read, Some("r"));
        assert_eq!(&*payload, r#"{"what":"other","entry":"read","room":"r"}"#);
        assert!(letter(DeadKind::Entry, "bob", payload).again().is_none());
    }

    #[test]
    fn filters_pick_by_every_part() {
        let it = letter(DeadKind::Inbox, "bob", "{}".into());
        assert!(DeadFilter::default().fits(&it) && DeadFilter::one(1).fits(&it) && !DeadFilter::one(2).fits(&it));
        assert!(!DeadFilter { kind: Some(DeadKind::Entry), ..DeadFilter::default() }.fits(&it));
        assert!(!DeadFilter { user: Some(user("ann")), ..DeadFilter::default() }.fits(&it));
        let before = |before| DeadFilter { before: Some(before), ..DeadFilter::default() };
        assert!(before(10).fits(&it) && !before(9).fits(&it));
    }
}
