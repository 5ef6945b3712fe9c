//! Who may change a membership, and what entry it leaves.
//!
//! | act | who | on whom | leaves |
//! |---|---|---|---|
//! | create | anyone, up to `rooms_max` | members are taken in by the creator, as by invitation | `joined` each, the owner first |
//! | join | anyone who is not banned, into a public room | themselves | `joined` |
//! | leave | a member; the last owner of a private room only when alone in it | themselves | `left` |
//! | invite | moderator; as moderator: owner | who is neither member nor banned, below their `rooms_max` by a quarter | `joined` |
//! | kick | moderator who outranks them | a member | `kicked` |
//! | ban | moderator who outranks them | anyone | `kicked` with role `banned` |
//! | role | owner; lifting a ban: moderator | a member; with `member` also someone banned | `role_changed` |
//!
//! - An administrator outranks everybody in every room, and is bound by no rule about last owners.
//! - Owners change each other's roles but cannot kick or ban each other: they demote first.
//! - A room never loses its last owner by a change of role. In public rooms owners may leave all the
//!   same, since nobody is locked in or out; an administrator can name a new one.
//! - Direct rooms keep the people they were made for: no join, no invitation, no roles, and only
//!   administrators kick. Everybody may leave.
//! - Whoever is a member already (or banned, or has the role) gets "committed" with the room's head
//!   and leaves no entry.

use super::{Begun, Facts, MembershipChange, Row, Stop, Turn, Verdict, may_write, refuse};
use crate::engine::event::{Committed, RoomRow};
use crate::engine::tally::Tally;
use crate::protocol::command::Manage;
use crate::protocol::encode::EventKind;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{Priority, Role, RoomKey, RoomKind, RoomName, UserId};

/// One change of a membership: whose, by whom, from what to what.
struct Change<'a> {
    room: RoomKey,
    user: &'a UserId,
    /// None: the user themselves.
    by: Option<&'a UserId>,
    old: Option<Role>,
    new: Option<Role>,
}

/// Who wants somebody to be in one more room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// The user, or an administrator.
    Themself,
    /// Somebody else.
    Another,
}

/// Most people of a direct room: each message puts an item into the inbox of each of them, as many as mentions do at most.
pub(super) const DIRECT_MEMBERS_MAX: u32 = 64;

/// Power of an administrator, above every role.
const ADMIN: u8 = 4;

fn rank(role: Option<Role>) -> u8 {
    match role {
        None | Some(Role::Banned) => 0,
        Some(Role::Member) => 1,
        Some(Role::Moderator) => 2,
        Some(Role::Owner) => 3,
    }
}

const MODERATOR: u8 = 2;
const OWNER: u8 = 3;

impl<F: Facts> Turn<'_, F> {
    pub(super) fn create_room(
        &mut self,
        name: RoomName,
        kind: RoomKind,
        title: Option<Box<str>>,
        creator: &UserId,
        mut members: Vec<UserId>,
    ) -> Verdict<F::Error> {
        if self.find(&name)?.is_some() {
            return Err(refuse(ErrorCode::Conflict, "a room of this name exists"));
        }
        members.retain(|user| user != creator);
        members.sort_unstable();
        members.dedup();
        if kind == RoomKind::Direct && members.len() >= DIRECT_MEMBERS_MAX as usize {
            let message = format!("a direct room has at most {DIRECT_MEMBERS_MAX} members, its creator included");
            return Err(Stop::Refused(Refusal::new(ErrorCode::LimitExceeded, message)));
        }
        self.check_rooms_max(creator, Asker::Themself)?;
        for user in &members {
            self.check_rooms_max(user, Asker::Another)?;
        }
        let key = self.new_room(name, kind, title);
        let mut committed =
            self.change(Change { room: key, user: creator, by: None, old: None, new: Some(Role::Owner) });
        for user in &members {
            let change = Change { room: key, user, by: Some(creator), old: None, new: Some(Role::Member) };
            committed = self.change(change);
        }
        Ok(committed)
    }

    pub(super) fn join(&mut self, name: &RoomName, user: UserId, auto_create: bool) -> Verdict<F::Error> {
        let Some(key) = self.find(name)? else {
            return match auto_create {
                true => self.create_room(name.clone(), RoomKind::Public, None, &user, Vec::new()),
                false => Err(refuse(ErrorCode::UnknownRoom, "there is no such room")),
            };
        };
        let old = self.role(key, &user)?;
        match (old, self.room(key).kind) {
            (Some(Role::Banned), _) => {
                return Err(refuse(ErrorCode::PermissionDenied, "you are banned from this room"));
            }
            (Some(_), _) => return self.unchanged(key),
            (None, RoomKind::Private | RoomKind::Direct) => {
                return Err(refuse(ErrorCode::PermissionDenied, "this room is entered by invitation only"));
            }
            (None, RoomKind::Public) => self.check_rooms_max(&user, Asker::Themself)?,
        }
        Ok(self.change(Change { room: key, user: &user, by: None, old, new: Some(Role::Member) }))
    }

    pub(super) fn leave(&mut self, name: &RoomName, user: &UserId) -> Verdict<F::Error> {
        let key = self.find(name)?.ok_or_else(|| refuse(ErrorCode::UnknownRoom, "there is no such room"))?;
        let old = self.role(key, user)?;
        if !old.is_some_and(Role::is_member) {
            return Err(refuse(ErrorCode::NotFound, "you are not a member of this room"));
        }
        let room = self.room(key);
        let locks_in = room.kind == RoomKind::Private && room.members > 1;
        if old == Some(Role::Owner) && locks_in && self.owners(key)? <= 1 {
            return Err(refuse(
                ErrorCode::PermissionDenied,
                "the last owner of a private room names another one first",
            ));
        }
        Ok(self.change(Change { room: key, user, by: None, old, new: None }))
    }

    pub(super) fn manage(
        &mut self,
        name: &RoomName,
        by: &UserId,
        by_admin: bool,
        user: UserId,
        act: Manage,
    ) -> Verdict<F::Error> {
        let key = self.find(name)?.ok_or_else(|| refuse(ErrorCode::UnknownRoom, "there is no such room"))?;
        let actor = if by_admin { ADMIN } else { rank(self.role(key, by)?) };
        if actor < MODERATOR {
            return Err(refuse(ErrorCode::PermissionDenied, "only owners and moderators do this"));
        }
        let old = self.role(key, &user)?;
        let direct = self.room(key).kind == RoomKind::Direct;
        let new = match act {
            Manage::Kick | Manage::Ban if direct && !by_admin => return Err(refuse_in_direct()),
            // What an admin may do there, an admin may undo: a ban that nothing lifts would end the room.
            Manage::Role(role) if direct && by_admin && old == Some(Role::Banned) => {
                self.new_role(key, actor, by_admin, old, role)?
            }
            Manage::Invite(_) | Manage::Role(_) if direct => return Err(refuse_in_direct()),
            Manage::Invite(role) => self.invited(actor, old, role)?,
            Manage::Kick => kicked(actor, old)?,
            Manage::Ban => banned(actor, old)?,
            Manage::Role(role) => self.new_role(key, actor, by_admin, old, role)?,
        };
        if new == old {
            return self.unchanged(key);
        }
        if !old.is_some_and(Role::is_member) && new.is_some_and(Role::is_member) {
            self.check_rooms_max(&user, if by_admin { Asker::Themself } else { Asker::Another })?;
        }
        let committed = self.change(Change { room: key, user: &user, by: Some(by), old, new });
        if matches!(act, Manage::Invite(_)) {
            self.feed_invitation(&committed, by, &user)?;
        }
        Ok(committed)
    }

    fn invited(&self, actor: u8, old: Option<Role>, role: Role) -> Result<Option<Role>, Stop<F::Error>> {
        match (old, role) {
            (_, Role::Banned | Role::Owner) => Err(refuse(ErrorCode::BadRequest, "nobody is invited in this role")),
            (Some(Role::Banned), _) => {
                Err(refuse(ErrorCode::PermissionDenied, "this user is banned: lift it with room:role member"))
            }
            (Some(Role::Member), Role::Moderator) => {
                Err(refuse(ErrorCode::Conflict, "this user is a member already: use room:role"))
            }
            (Some(_), _) => Ok(old),
            (None, Role::Moderator) if actor < OWNER => {
                Err(refuse(ErrorCode::PermissionDenied, "only owners name moderators"))
            }
            (None, _) => Ok(Some(role)),
        }
    }

    fn new_role(
        &mut self,
        key: RoomKey,
        actor: u8,
        by_admin: bool,
        old: Option<Role>,
        role: Role,
    ) -> Result<Option<Role>, Stop<F::Error>> {
        match (old, role) {
            (_, Role::Banned) => return Err(refuse(ErrorCode::BadRequest, "use room:ban")),
            (None, _) => return Err(refuse(ErrorCode::NotFound, "this user is not a member of the room")),
            (Some(Role::Banned), Role::Member) => return Ok(Some(role)),
            (Some(Role::Banned), _) => return Err(refuse(ErrorCode::BadRequest, "lift the ban first: role member")),
            _ if actor < OWNER => return Err(refuse(ErrorCode::PermissionDenied, "only owners change roles")),
            _ => {}
        }
        if old == Some(Role::Owner) && role != Role::Owner && !by_admin && self.owners(key)? <= 1 {
            return Err(refuse(ErrorCode::PermissionDenied, "a room keeps one owner: name another one first"));
        }
        Ok(Some(role))
    }

    /// Owners of the room, this batch's changes included.
    fn owners(&mut self, key: RoomKey) -> Result<i64, Stop<F::Error>> {
        let mut owners = i64::from(self.facts.owners(key).map_err(Stop::Facts)?);
        for ((room, user), role) in &self.changes.roles {
            if *room == key {
                let was = self.facts.role(key, user).map_err(Stop::Facts)? == Some(Role::Owner);
                owners += i64::from(*role == Some(Role::Owner)) - i64::from(was);
            }
        }
        Ok(owners)
    }

    /// Room for one more membership. Others fill three quarters of a user's places at most: however many rooms strangers
    /// take somebody into, they can still go where they want.
    fn check_rooms_max(&mut self, user: &UserId, asker: Asker) -> Result<(), Stop<F::Error>> {
        let max = self.core.config.rooms_max;
        let max = match asker {
            Asker::Themself => max,
            Asker::Another => max - max / 4,
        };
        let won = self.changes.memberships.get(user).copied().unwrap_or(0);
        let stands = i64::from(self.facts.memberships(user).map_err(Stop::Facts)?);
        if stands + won < i64::from(max) {
            return Ok(());
        }
        let message = match asker {
            Asker::Themself => format!("{user} is in as many rooms as is allowed ({max})"),
            Asker::Another => format!("{user} is in as many rooms as others may take them into ({max})"),
        };
        Err(Stop::Refused(Refusal::new(ErrorCode::LimitExceeded, message)))
    }

    fn new_room(&mut self, name: RoomName, kind: RoomKind, title: Option<Box<str>>) -> RoomKey {
        let key = RoomKey(self.core.end.room_key + 1 + self.draft.rooms.len() as u64);
        let tally = Tally::start(name.as_str());
        let row = RoomRow { key, name, kind, title, head: 0, members: 0, tally };
        self.draft.rooms.push(row.clone());
        self.keep(row)
    }

    /// Does it: role, counts, entry.
    fn change(&mut self, change: Change<'_>) -> Committed {
        let Change { room: key, user, by, old, new } = change;
        let (was, is) = (old.is_some_and(Role::is_member), new.is_some_and(Role::is_member));
        let room = self.core.rooms.get_mut(&key).expect("the room was loaded by the caller");
        match (was, is) {
            (false, true) => room.members += 1,
            (true, false) => room.members = room.members.saturating_sub(1),
            _ => {}
        }
        if !may_write(room.kind, new) {
            self.draft.losses.push((self.draft.next_position(), key, user.clone()));
        }
        if was != is {
            *self.changes.memberships.entry(user.clone()).or_default() += if is { 1 } else { -1 };
        }
        let counted = room.tally.messages;
        self.changes.roles.insert((key, user.clone()), new);
        let committed = self.push(Row {
            room: key,
            seq: 0,
            kind: kind_of(by, old, new),
            priority: Priority::Normal,
            author: None,
            client_id: None,
            thread: None,
            audience: None,
            fields: fields(user, by, new),
            change: Some(Box::new(MembershipChange { user: user.clone(), role: new, counted })),
        });
        if !was && is {
            self.changes.begun.insert((key, user.clone()), Begun { seq: committed.seq, counted });
        }
        committed
    }
}

fn kind_of(by: Option<&UserId>, old: Option<Role>, new: Option<Role>) -> EventKind {
    match (old, new) {
        (_, Some(Role::Banned)) => EventKind::RoomKicked,
        (None, Some(_)) => EventKind::RoomJoined,
        (Some(_), Some(_)) => EventKind::RoomRoleChanged,
        (_, None) if by.is_some() => EventKind::RoomKicked,
        (_, None) => EventKind::RoomLeft,
    }
}

/// `"user":"bob","by":"alice","role":"member"`: names need no escapes (see `UserId`).
fn fields(user: &UserId, by: Option<&UserId>, role: Option<Role>) -> Box<str> {
    let mut out = format!("\"user\":\"{user}\"");
    if let Some(by) = by {
        out.push_str(",\"by\":\"");
        out.push_str(by.as_str());
        out.push('"');
    }
    if let Some(role) = role {
        out.push_str(",\"role\":\"");
        out.push_str(role.as_str());
        out.push('"');
    }
    out.into_boxed_str()
}

fn kicked<E>(actor: u8, old: Option<Role>) -> Result<Option<Role>, Stop<E>> {
    if !old.is_some_and(Role::is_member) {
        return Err(refuse(ErrorCode::NotFound, "this user is not a member of the room"));
    }
    outranks(actor, old)?;
    Ok(None)
}

fn banned<E>(actor: u8, old: Option<Role>) -> Result<Option<Role>, Stop<E>> {
    outranks(actor, old)?;
    Ok(Some(Role::Banned))
}

fn outranks<E>(actor: u8, old: Option<Role>) -> Result<(), Stop<E>> {
    if actor > rank(old) {
        return Ok(());
    }
    Err(refuse(ErrorCode::PermissionDenied, "this user's role is not below yours"))
}

fn refuse_in_direct<E>() -> Stop<E> {
    refuse(ErrorCode::PermissionDenied, "a direct room keeps the people it was made for")
}
