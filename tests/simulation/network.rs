//! Between clients and shards: connecting, frames in order, flushing, stalling, leaving.

use antiphon::engine::event::{Claims, ConnKey, Input, Opening};
use antiphon::engine::shard_of;
use antiphon::protocol::error::CloseCode;
use antiphon::protocol::ids::DeviceId;

use crate::checker::text;
use crate::client::{Client, Scene};
use crate::link::{Heard, Link, Phase, take_frame};
use crate::trace;
use crate::world::{Event, OK, World};

impl World {
    pub fn wake(&mut self, client: usize) {
        let pause = self.dice.between(1, self.plan.pause_ms * 2);
        self.after(pause, Event::Wake(client));
        let Some(link) = self.uses[client] else { return self.connect(client) };
        if self.dice.chance(self.plan.client_drops) {
            return self.abandon(client, link);
        }
        if self.dice.chance(self.plan.client_stalls) {
            self.links[link].stalled_until = self.now + self.dice.between(100, 6_000);
        }
        if !self.heals {
            self.clients[client].wants_refresh = self.dice.chance(20);
        }
        let frames = self.with_client(client, Client::act);
        self.say(link, frames);
    }

    pub fn with_client<T>(&mut self, client: usize, act: impl FnOnce(&mut Client, &mut Scene<'_>) -> T) -> T {
        let mut scene = Scene {
            checker: &mut self.checker,
            dice: &mut self.dice,
            plan: &self.plan,
            heals: self.heals,
            last_words: self.last_words,
            is_final: self.is_final,
            now: self.now,
            fed_at: u64::MAX,
        };
        act(&mut self.clients[client], &mut scene)
    }

    pub fn claims(&mut self, client: usize) -> Claims {
        let lasts_ms = if self.heals { 3_600_000 } else { self.dice.pick(&[3_000, 60_000, 3_600_000]) };
        let claims = Claims {
            user: self.clients[client].user.clone(),
            expires_at: self.now + lasts_ms,
            issued_at: Some(self.issued_at[client]),
            jti: None,
            admin: self.clients[client].is_admin,
            rooms: None,
        };
        self.tokens.push(claims.clone());
        claims
    }

    pub fn connect(&mut self, client: usize) {
        let claims = self.claims(client);
        let shard = usize::from(shard_of(&claims.user, self.plan.shards).0);
        let slots = &mut self.shards[shard].slots;
        let link = self.links.len();
        let slot = slots.iter().position(|(_, link)| link.is_none()).unwrap_or_else(|| {
            slots.push((0, None));
            slots.len() - 1
        });
        slots[slot].0 += 1;
        slots[slot].1 = Some(link);
        let key = ConnKey { slot: slot as u32, generation: slots[slot].0 };
        let mut it = Link::new(client, shard, key, self.issued_at[client], self.plan.window);
        it.up_at = self.now + self.dice.below(self.plan.net_ms + 1);
        let at = it.up_at;
        self.links.push(it);
        self.uses[client] = Some(link);
        self.at(at, Event::Open(link, claims));
        let frames = self.with_client(client, Client::on_connect);
        self.say(link, frames);
    }

    pub fn opened(&mut self, link: usize, claims: Claims) {
        let it = &mut self.links[link];
        if it.phase != Phase::Opening {
            return;
        }
        it.phase = Phase::Open;
        let device = DeviceId::parse(&format!("d{}", it.client)).unwrap();
        trace!("open {} {:?} {}", it.client, it.key, claims.user);
        let (shard, key) = (it.shard, it.key);
        self.handle(shard, Input::Opened(key, Opening { claims, device, batch: false }));
    }

    pub fn say(&mut self, link: usize, frames: Vec<String>) {
        for frame in frames {
            let frame = if frame.contains("TOKEN") {
                self.claims(self.links[link].client);
                frame.replace("TOKEN", &(self.tokens.len() - 1).to_string())
            } else {
                frame
            };
            let at = (self.now + self.dice.below(self.plan.net_ms + 1)).max(self.links[link].up_at);
            self.links[link].up_at = at;
            self.at(at, Event::Up(link, frame));
        }
    }

    pub fn note_heard(&mut self, link: usize) {
        let it = &self.links[link];
        if it.phase == Phase::Open && !it.is_abandoned {
            self.shards[it.shard].engine.note_heard(it.key, self.now);
        }
    }

    pub fn on_frame(&mut self, link: usize, frame: String) {
        if self.links[link].phase != Phase::Open {
            return;
        }
        self.note_heard(link);
        let it = &mut self.links[link];
        if it.is_parked || it.again.is_some() || !it.backlog.is_empty() {
            it.backlog.push_back(frame);
        } else {
            self.feed(link, &frame);
        }
    }

    pub fn feed(&mut self, link: usize, frame: &str) {
        let (shard, key) = (self.links[link].shard, self.links[link].key);
        self.links[link].fed_at = self.shards[shard].applied;
        trace!("frame {} {frame}", self.links[link].client);
        let mut parser = self.parser.take().expect("frames are fed one at a time");
        match parser.parse(frame.as_bytes()) {
            Ok(request) => self.handle(shard, Input::Frame(key, &request)),
            Err(bad) => self.handle(shard, Input::BadFrame(key, bad.id, bad.refusal)),
        }
        self.parser = Some(parser);
        if let Some(again) = &mut self.links[link].again
            && again.is_empty()
        {
            again.push_str(frame);
        }
    }

    pub fn go_on(&mut self, link: usize) {
        while self.links[link].phase == Phase::Open && !self.links[link].is_parked {
            let it = &mut self.links[link];
            let Some(frame) = it.again.take().or_else(|| it.backlog.pop_front()) else { return };
            self.feed(link, &frame);
        }
    }

    pub fn flush(&mut self, link: usize) {
        let it = &mut self.links[link];
        it.is_dirty = false;
        if matches!(it.phase, Phase::Dead | Phase::Opening) {
            return;
        }
        let was_blocked = it.is_blocked;
        let all = it.send(self.now);
        let (shard, key) = (it.shard, it.key);
        if !all && !was_blocked {
            self.after(u64::from(self.plan.limits.stall_ms), Event::Stall(link));
        }
        if all
            && self.links[link].phase == Phase::Open
            && let Some(gaps) = self.links[link].outbox.take_gaps(&self.ladder)
        {
            trace!("drained {} {gaps:?}", self.links[link].client);
            self.handle(shard, Input::OutboxDrained(key, gaps));
        }
        self.wish_to_read(link);
    }

    pub fn wish_to_read(&mut self, link: usize) {
        let it = &mut self.links[link];
        if !it.wire.is_empty() && !it.is_read_due {
            it.is_read_due = true;
            let at = (self.now + self.dice.below(self.plan.net_ms + 1)).max(it.stalled_until);
            self.at(at, Event::Read(link));
        }
    }

    pub fn client_reads(&mut self, link: usize) {
        let it = &mut self.links[link];
        it.is_read_due = false;
        it.arrived.append(&mut it.wire);
        while !self.links[link].is_abandoned && self.links[link].phase != Phase::Dead {
            let Some(heard) = take_frame(&mut self.links[link].arrived) else { break };
            let client = self.links[link].client;
            match heard {
                Heard::Text(json) => {
                    trace!("{client} hears {}", text(&json));
                    let oks = &mut self.links[link].oks;
                    let fed_at = if json.starts_with(OK) { oks.pop_front().expect("it was pushed") } else { u64::MAX };
                    let frames = self.with_client(client, |client, scene| {
                        scene.fed_at = fed_at;
                        client.hear(&json, scene)
                    });
                    self.say(link, frames);
                }
                Heard::Ping => {
                    let ms = self.dice.below(self.plan.net_ms + 1);
                    self.after(ms, Event::Pong(link));
                }
                Heard::Close(code) => self.on_close(client, link, code),
            }
        }
        if self.links[link].phase != Phase::Dead && !self.links[link].is_abandoned {
            self.dirty(link);
        }
    }

    pub fn on_close(&mut self, client: usize, link: usize, code: u16) {
        if code == CloseCode::InvalidToken.number() {
            self.issued_at[client] = self.now / 1_000 + 2;
        }
        self.kill(link);
    }

    /// The client is gone, and the server learns of it or not.
    pub fn abandon(&mut self, client: usize, link: usize) {
        trace!("{client} drops its connection");
        self.links[link].is_abandoned = true;
        self.uses[client] = None;
        self.clients[client].on_disconnect();
        if !self.dice.chance(self.plan.half_open) {
            let ms = self.dice.below(200);
            self.after(ms, Event::PeerGone(link));
        }
    }

    pub fn on_peer_gone(&mut self, link: usize) {
        let it = &self.links[link];
        let (shard, key, phase) = (it.shard, it.key, it.phase);
        if phase == Phase::Open {
            self.handle(shard, Input::Closed(key));
        }
        self.kill(link);
    }

    pub fn on_stall(&mut self, link: usize) {
        let it = &self.links[link];
        if it.phase != Phase::Open || !it.is_blocked {
            return;
        }
        let due = it.progress_at + u64::from(self.plan.limits.stall_ms);
        if due > self.now {
            return self.at(due, Event::Stall(link));
        }
        let (shard, key) = (it.shard, it.key);
        self.close_slow(link);
        self.handle(shard, Input::Closed(key));
    }

    /// Nothing is left of a link; its slot is free.
    pub fn kill(&mut self, link: usize) {
        let it = &mut self.links[link];
        if std::mem::replace(&mut it.phase, Phase::Dead) == Phase::Dead {
            return;
        }
        it.wire.clear();
        let (shard, slot, client) = (it.shard, it.key.slot as usize, it.client);
        if let Some(entry) = self.shards.get_mut(shard).and_then(|shard| shard.slots.get_mut(slot))
            && entry.1 == Some(link)
        {
            entry.1 = None;
        }
        if self.uses[client] == Some(link) {
            self.uses[client] = None;
            self.clients[client].on_disconnect();
        }
    }
}
