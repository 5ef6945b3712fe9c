//! Fields to commands: one small function a shape, every bound of docs/WEBSOCKET_API.md checked here.

use std::sync::Arc;

use super::super::audience::{RoleSet, is_device_class};
use super::super::command::{
    Activity, Command, HistoryFrom, Manage, MessageSend, Notify, PresenceOf, RoomCheck, Status,
};
use super::super::error::{ErrorCode, Refusal};
use super::super::filter::Filter;
use super::super::ids::{Priority, Role, RoomKind, RoomName};
use super::fields::{Length, SEQ_MAX, required};
use super::{
    BODY_BYTES_MAX, DATA_BYTES_MAX, ITEM_TTL_MS_MAX, META_BYTES_MAX, NAME_BYTES_MAX, Object, TOKEN_BYTES_MAX, bad,
};

const TITLE_BYTES_MAX: usize = 128;
const MEMBERS_MAX: usize = 1_000;
const PAGE_MAX: u32 = 1_000;
const PAGE_DEFAULT: u32 = 100;
const HISTORY_MAX: u32 = 100;
const HISTORY_DEFAULT: u32 = 50;
const CLIENT_ID_CHARS_MAX: usize = 64;
const MENTIONS_MAX: usize = 64;
const ATTACHMENTS_MAX: usize = 16;
const ATTACHMENT_CHARS_MAX: usize = 128;
const FILTER_MAX: usize = 64;
const CLASSES_MAX: usize = 16;
const EMOJI_BYTES_MAX: usize = 32;
const SYNC_ROOMS_MAX: usize = 256;
/// Each may cost a reader a walk of up to 63 entries.
const SYNC_HASHES_MAX: usize = 32;
const PRESENCE_USERS_MAX: usize = 1_000;
const TRANSITIONS_MAX: u32 = 500;
const TRANSITIONS_DEFAULT: u32 = 100;
const CUSTOM_CHARS_MAX: usize = 128;
const ACK_ITEMS_MAX: usize = 1_000;
const LIST_MAX: u32 = 100;
const LIST_DEFAULT: u32 = 50;

const KINDS: &str = "public, private, direct";
const PRIORITIES: &str = "critical, normal, low";

/// Reads the command that `type` names.
///
/// # Errors
/// [`ErrorCode::UnknownType`] for a type that is not built, [`ErrorCode::BadRequest`] for a field
/// that is missing, of the wrong type, or out of bounds.
pub(super) fn read<'s>(frame: Object<'_, 's>) -> Result<Command<'s>, Refusal> {
    let name = frame.find("type").ok_or_else(|| bad("type is missing"))?;
    let name = name.text().ok_or_else(|| bad("type must be a string"))?;
    match name {
        "ping" => Ok(Command::Ping),
        "message:send" => message_send(frame),
        "message:read" => Ok(Command::MessageRead { room: frame.room()?, seq: required("seq", frame.seq("seq", 1)?)? }),
        "message:delivered" => {
            Ok(Command::MessageDelivered { room: frame.room()?, seq: required("seq", frame.seq("seq", 1)?)? })
        }
        "message:edit" => message_edit(frame),
        "message:delete" => {
            Ok(Command::MessageDelete { room: frame.room()?, seq: required("seq", frame.seq("seq", 1)?)? })
        }
        "reaction:add" => reaction(frame, true),
        "reaction:remove" => reaction(frame, false),
        "message:history" => message_history(frame),
        "event:send" => event_send(frame),
        "room:create" => room_create(frame),
        "room:join" => {
            Ok(Command::RoomJoin { room: frame.room()?, since: frame.since()?, filter: subscription_filter(frame)? })
        }
        "room:subscribe" => Ok(Command::RoomSubscribe {
            room: frame.room()?,
            since: frame.since()?,
            filter: subscription_filter(frame)?,
        }),
        "room:unsubscribe" => Ok(Command::RoomUnsubscribe { room: frame.room()? }),
        "room:leave" => Ok(Command::RoomLeave { room: frame.room()? }),
        "room:invite" => {
            let role = role(frame, "member, moderator", |role| matches!(role, Role::Member | Role::Moderator))?;
            room_manage(frame, Manage::Invite(role.unwrap_or(Role::Member)))
        }
        "room:kick" => room_manage(frame, Manage::Kick),
        "room:ban" => room_manage(frame, Manage::Ban),
        "room:role" => {
            let role = role(frame, "member, moderator, owner", Role::is_member)?;
            room_manage(frame, Manage::Role(required("role", role)?))
        }
        "room:members" => Ok(Command::RoomMembers {
            room: frame.room()?,
            after: frame.user("after")?,
            limit: frame.limit(PAGE_MAX, PAGE_DEFAULT)?,
        }),
        "room:list" => Ok(Command::RoomList {
            kind: frame.word("kind", RoomKind::parse, KINDS)?,
            after: frame.name("after", RoomName::is_valid, RoomName::bad())?,
            limit: frame.limit(PAGE_MAX, PAGE_DEFAULT)?,
        }),
        "notify" => notify(frame),
        "inbox:ack" => Ok(Command::InboxAck { items: frame.integers("items", ACK_ITEMS_MAX, 1, SEQ_MAX)? }),
        "inbox:list" => Ok(Command::InboxList {
            after: frame.integer("after", 0, SEQ_MAX)?.unwrap_or(0),
            limit: frame.limit(LIST_MAX, LIST_DEFAULT)?,
        }),
        "sync:check" => sync_check(frame),
        "auth:refresh" => {
            let token = required("token", frame.text("token", Length::Bytes(1, TOKEN_BYTES_MAX))?)?;
            Ok(Command::AuthRefresh { token })
        }
        "stats" => Ok(Command::Stats),
        "presence:set" => Ok(Command::PresenceSet {
            status: required("status", frame.word("status", Status::parse, "online, away, busy, offline")?)?,
            custom: frame.text("custom", Length::Chars(0, CUSTOM_CHARS_MAX))?,
        }),
        "presence:subscribe" => Ok(Command::PresenceSubscribe(presence_of(frame)?)),
        "presence:unsubscribe" => Ok(Command::PresenceUnsubscribe(presence_of(frame)?)),
        "presence:get" => Ok(Command::PresenceGet { users: presence_users(frame)? }),
        "presence:history" => presence_history(frame),
        "activity" => Ok(Command::Activity {
            room: frame.name("room", RoomName::is_valid, RoomName::bad())?,
            kind: required("kind", frame.word("kind", Activity::parse, "typing, reading, idle, active")?)?,
        }),
        _ => Err(unknown_type()),
    }
}

#[cold]
fn unknown_type() -> Refusal {
    Refusal::new(ErrorCode::UnknownType, "no command of that type")
}

fn message_send<'s>(frame: Object<'_, 's>) -> Result<Command<'s>, Refusal> {
    let is_attachment =
        |id: &str| !id.is_empty() && id.len() <= ATTACHMENT_CHARS_MAX * 4 && id.chars().count() <= ATTACHMENT_CHARS_MAX;
    let meta = match frame.find("meta") {
        Some(meta) if meta.object().is_none() => return Err(bad("meta must be an object")),
        Some(_) => frame.json("meta", META_BYTES_MAX)?,
        None => None,
    };
    Ok(Command::MessageSend(Box::new(MessageSend {
        room: frame.room()?,
        body: required("body", frame.text("body", Length::Bytes(1, BODY_BYTES_MAX))?)?,
        client_id: frame.text("client_id", Length::Chars(1, CLIENT_ID_CHARS_MAX))?,
        thread: frame.seq("thread", 1)?,
        reply_to: frame.seq("reply_to", 1)?,
        mentions: frame.users("mentions", MENTIONS_MAX)?,
        attachments: frame.texts("attachments", ATTACHMENTS_MAX, is_attachment, "a file id of 1 to 128 characters")?,
        priority: priority(frame)?,
        exclude: frame.users("exclude", FILTER_MAX)?,
        only: somebody(frame, "only", frame.users("only", FILTER_MAX)?)?,
        only_roles: only_roles(frame)?,
        only_devices: only_devices(frame)?,
        meta,
        read: frame.flag("read")?,
        timing: frame.flag("timing")?,
    })))
}

fn message_edit<'s>(frame: Object<'_, 's>) -> Result<Command<'s>, Refusal> {
    Ok(Command::MessageEdit {
        room: frame.room()?,
        seq: required("seq", frame.seq("seq", 1)?)?,
        body: required("body", frame.text("body", Length::Bytes(1, BODY_BYTES_MAX))?)?,
        version: frame.seq("version", 1)?,
    })
}

fn reaction<'s>(frame: Object<'_, 's>, is_added: bool) -> Result<Command<'s>, Refusal> {
    let emoji = required("emoji", frame.text("emoji", Length::Bytes(1, EMOJI_BYTES_MAX))?)?;
    if emoji.chars().any(char::is_control) {
        return Err(bad("emoji must have no control characters"));
    }
    Ok(Command::Reaction { room: frame.room()?, seq: required("seq", frame.seq("seq", 1)?)?, emoji, is_added })
}

fn message_history<'s>(frame: Object<'_, 's>) -> Result<Command<'s>, Refusal> {
    let from = match (frame.seq("before", 1)?, frame.seq("after", 0)?) {
        (None, None) => HistoryFrom::Newest,
        (Some(before), None) => HistoryFrom::Before(before),
        (None, Some(after)) => HistoryFrom::After(after),
        (Some(_), Some(_)) => return Err(bad("before and after exclude each other")),
    };
    Ok(Command::MessageHistory {
        room: frame.room()?,
        from,
        thread: frame.seq("thread", 1)?,
        limit: frame.limit(HISTORY_MAX, HISTORY_DEFAULT)?,
    })
}

fn event_send<'s>(frame: Object<'_, 's>) -> Result<Command<'s>, Refusal> {
    Ok(Command::EventSend {
        room: frame.room()?,
        name: required("name", frame.text("name", Length::Bytes(1, NAME_BYTES_MAX))?)?,
        data: required("data", frame.json("data", DATA_BYTES_MAX)?)?,
        priority: priority(frame)?,
        only_roles: only_roles(frame)?,
        only_devices: only_devices(frame)?,
    })
}

fn only_roles(frame: Object<'_, '_>) -> Result<RoleSet, Refusal> {
    let is_role = |word: &str| Role::parse(word).is_some_and(Role::is_member);
    let words = frame.texts("only_roles", 3, is_role, "member, moderator or owner")?;
    let words = somebody(frame, "only_roles", words)?;
    Ok(words.into_iter().filter_map(Role::parse).fold(RoleSet::default(), RoleSet::with))
}

fn only_devices<'s>(frame: Object<'_, 's>) -> Result<Vec<&'s str>, Refusal> {
    let rule = "a class of devices: 1 to 64 of A-Z a-z 0-9 _";
    somebody(frame, "only_devices", frame.texts("only_devices", CLASSES_MAX, is_device_class, rule)?)
}

/// A list that narrows an audience. One that is there and empty is most likely computed: nobody is not everybody.
fn somebody<'s>(frame: Object<'_, 's>, field: &'static str, list: Vec<&'s str>) -> Result<Vec<&'s str>, Refusal> {
    match list.is_empty() && frame.find(field).is_some() {
        true => Err(bad(format!("{field} is empty: name somebody, or leave it out"))),
        false => Ok(list),
    }
}

fn notify<'s>(frame: Object<'_, 's>) -> Result<Command<'s>, Refusal> {
    Ok(Command::Notify(Box::new(Notify {
        user: required("user", frame.user("user")?)?,
        name: required("name", frame.text("name", Length::Bytes(1, NAME_BYTES_MAX))?)?,
        data: required("data", frame.json("data", DATA_BYTES_MAX)?)?,
        priority: priority(frame)?,
        ttl_ms: frame.integer("ttl_ms", 1, ITEM_TTL_MS_MAX)?,
    })))
}

fn room_create<'s>(frame: Object<'_, 's>) -> Result<Command<'s>, Refusal> {
    Ok(Command::RoomCreate {
        room: frame.room()?,
        kind: required("kind", frame.word("kind", RoomKind::parse, KINDS)?)?,
        members: frame.users("members", MEMBERS_MAX)?,
        title: frame.text("title", Length::Bytes(0, TITLE_BYTES_MAX))?,
    })
}

fn room_manage<'s>(frame: Object<'_, 's>, act: Manage) -> Result<Command<'s>, Refusal> {
    Ok(Command::RoomManage { room: frame.room()?, user: required("user", frame.user("user")?)?, act })
}

fn sync_check<'s>(frame: Object<'_, 's>) -> Result<Command<'s>, Refusal> {
    let refuse = || bad(format!("rooms must be an array of at most {SYNC_ROOMS_MAX} objects with room and seq"));
    let list = required("rooms", frame.find("rooms"))?;
    let (len, elements) = list.array().filter(|(len, _)| *len <= SYNC_ROOMS_MAX).ok_or_else(refuse)?;
    let mut rooms = Vec::with_capacity(len);
    for element in elements {
        let entry = element.object().ok_or_else(refuse)?;
        let text = entry.text("hash", Length::Bytes(0, 16))?;
        let hash = match text {
            Some("") | None => None,
            Some(text) => Some(hash(text).ok_or_else(|| bad("hash must be 16 hexadecimal digits, or empty"))?),
        };
        let seq = required("seq", entry.seq("seq", 0)?)?;
        rooms.push(RoomCheck { room: entry.room()?, seq, hash, wants_hash: text.is_some() });
    }
    if rooms.iter().filter(|check| check.wants_hash).count() > SYNC_HASHES_MAX {
        let message = format!("at most {SYNC_HASHES_MAX} rooms of one sync:check carry a hash");
        return Err(Refusal::new(ErrorCode::LimitExceeded, message));
    }
    Ok(Command::SyncCheck { rooms })
}

/// Sixteen hexadecimal digits.
fn hash(text: &str) -> Option<u64> {
    let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

fn subscription_filter(frame: Object<'_, '_>) -> Result<Option<Arc<Filter>>, Refusal> {
    frame.find("filter").map(|value| super::filter::read(value).map(Arc::new)).transpose()
}

fn presence_of<'s>(frame: Object<'_, 's>) -> Result<PresenceOf<'s>, Refusal> {
    match (frame.find("users"), frame.find("room")) {
        (Some(_), None) => Ok(PresenceOf::Users(presence_users(frame)?)),
        (None, Some(_)) => Ok(PresenceOf::Room(frame.room()?)),
        _ => Err(bad("name either users or a room")),
    }
}

fn presence_users<'s>(frame: Object<'_, 's>) -> Result<Vec<&'s str>, Refusal> {
    let users = frame.users("users", PRESENCE_USERS_MAX)?;
    if users.is_empty() { Err(bad("users must name 1 to 1000 users")) } else { Ok(users) }
}

fn presence_history<'s>(frame: Object<'_, 's>) -> Result<Command<'s>, Refusal> {
    let user = required("user", frame.user("user")?)?;
    let from = frame.integer("from", 0, SEQ_MAX)?.unwrap_or(0);
    let to = frame.integer("to", 0, SEQ_MAX)?;
    if to.is_some_and(|to| to < from) {
        return Err(bad("to must not be before from"));
    }
    Ok(Command::PresenceHistory { user, from, to, limit: frame.limit(TRANSITIONS_MAX, TRANSITIONS_DEFAULT)? })
}

fn priority(frame: Object<'_, '_>) -> Result<Priority, Refusal> {
    Ok(frame.word("priority", Priority::parse, PRIORITIES)?.unwrap_or_default())
}

/// `role`, when it is one that the command may give.
fn role(frame: Object<'_, '_>, words: &'static str, allowed: fn(Role) -> bool) -> Result<Option<Role>, Refusal> {
    match frame.word("role", Role::parse, words)? {
        Some(role) if !allowed(role) => Err(bad(format!("role must be one of {words}"))),
        role => Ok(role),
    }
}
