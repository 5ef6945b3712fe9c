//! What the admin API asks of a shard: publish, disconnect, revoke, notify.

use super::super::event::{AdminAct, AdminAnswer, AdminRequest, ConnKey, Entry, NewMessage, Revocation, Token};
use super::super::shard::Shard;
use super::super::users::Waiter;
use super::Waiting;
use super::message::fields;
use crate::protocol::audience::RoleSet;
use crate::protocol::command::MessageSend;
use crate::protocol::error::{CloseCode, ErrorCode, Refusal};
use crate::protocol::ids::{RoomName, UserId};

impl Shard {
    pub(in crate::engine) fn on_admin(&mut self, request: AdminRequest) {
        let token = request.token;
        let result = match &request.act {
            AdminAct::Publish { room, .. } if self.rooms.find(room.as_str()).is_none() => {
                self.load_or_refuse(room.clone(), request)
            }
            AdminAct::Publish { .. } => self.publish(token, &request.act),
            AdminAct::Disconnect { user, reason } => {
                let count = self.disconnect(user, reason);
                self.admin_reply(token, Ok(AdminAnswer::Disconnected(count)));
                Ok(())
            }
            AdminAct::Presence => {
                let count = self.count_presence();
                self.admin_reply(token, Ok(AdminAnswer::Presence(count)));
                Ok(())
            }
            AdminAct::PresenceDevices => {
                let classes = self.count_devices();
                self.admin_reply(token, Ok(AdminAnswer::PresenceDevices(classes)));
                Ok(())
            }
            AdminAct::PresenceAnalytics { hours } => self.ask_analytics(token, *hours),
            AdminAct::Revoke(revocation) => self.revoke(token, revocation.clone()),
            AdminAct::Dead(act) => self.admin_dead(token, act.clone()),
            AdminAct::DeadLetters { filter, after, limit } => self.admin_dead_letters(token, filter, *after, *limit),
            AdminAct::Notify(item) => self.admin_notify(token, (**item).clone()),
        };
        if let Err(refusal) = result {
            self.admin_reply(token, Err(refusal));
        }
    }

    fn load_or_refuse(&mut self, room: RoomName, request: AdminRequest) -> Result<(), Refusal> {
        if self.rooms.is_absent(room.as_str()) {
            return Err(Refusal::new(ErrorCode::UnknownRoom, "there is no such room"));
        }
        self.load_room(room, Some(Waiter::Admin(request)))
    }

    fn publish(&mut self, token: Token, act: &AdminAct) -> Result<(), Refusal> {
        let AdminAct::Publish { room, author, client_id, body, meta, priority } = act else { return Ok(()) };
        self.cx.may_append()?;
        let Some(idx) = self.rooms.find(room.as_str()) else { return Ok(()) };
        let message = MessageSend {
            room: room.as_str(),
            body,
            client_id: None,
            thread: None,
            reply_to: None,
            mentions: Vec::new(),
            attachments: Vec::new(),
            priority: *priority,
            exclude: Vec::new(),
            only: Vec::new(),
            only_roles: RoleSet::default(),
            only_devices: Vec::new(),
            meta: meta.as_ref().map(|meta| meta.to_string()),
            read: false,
            timing: false,
        };
        let trace = self.cx.rng.next_u64();
        let entry = NewMessage {
            room: self.rooms.get(idx).key,
            author: author.clone(),
            by_admin: true,
            client_id: client_id.clone(),
            fields: fields(&message, trace),
            thread: None,
            audience: None,
            priority: *priority,
            mentions: Box::default(),
            reads: false,
        };
        let waiting = self.pending.insert(Waiting::AdminPublish { token, room: room.clone() });
        self.cx.stats.messages_submitted += 1;
        self.cx.stats.count_event_in(*priority);
        self.cx.append(waiting, Entry::Message(entry));
        Ok(())
    }

    fn disconnect(&mut self, user: &UserId, reason: &str) -> u32 {
        let Some(idx) = self.users.find(user.as_str()) else { return 0 };
        // Whoever is put out is gone at once, with the devices that may still come back.
        self.lay_ghosts(idx, |_| true);
        let conns: Vec<ConnKey> = self.users.get(idx).conns.clone();
        for conn in &conns {
            self.end(*conn, Some((CloseCode::Forbidden, reason.to_owned().into())));
        }
        conns.len() as u32
    }

    fn revoke(&mut self, token: Token, revocation: Revocation) -> Result<(), Refusal> {
        self.cx.may_append()?;
        let waiting = self.pending.insert(Waiting::AdminRevoke { token });
        self.cx.append(waiting, Entry::Revoke(revocation));
        Ok(())
    }
}
