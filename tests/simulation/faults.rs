//! What goes wrong by itself, second by second, and what administrators do meanwhile.

use antiphon::engine::event::{AdminAct, AdminRequest, Input, Revocation, Token};
use antiphon::engine::inbox::NewItem;
use antiphon::engine::shard_of;
use antiphon::protocol::ids::{Priority, RoomName, UserId};

use crate::trace;
use crate::world::{Event, World};

impl World {
    pub fn each_second(&mut self) {
        self.after(1_000, Event::Second);
        if self.dice.chance(self.plan.crashes) {
            return self.crash();
        }
        if self.dice.chance(self.plan.drains) {
            self.drain();
        }
        if self.dice.chance(self.plan.degrades) && !self.store.is_degraded() {
            self.degrade(true);
            let ms = self.dice.between(100, 3_000);
            self.after(ms, Event::Recover(self.incarnation));
        }
        if self.dice.chance(self.plan.admin_acts) {
            self.administer();
        }
        // The breaker's probe: a batch in doubt is settled without new writes.
        self.after(0, Event::StoreTurn(self.incarnation));
    }

    /// A restart as it should be: goaway, some time, close, end.
    fn drain(&mut self) {
        trace!("drain");
        for shard in 0..self.shards.len() {
            self.handle(shard, Input::Drain { spread_ms: 1_000 });
        }
        let ms = self.dice.between(0, 1_000);
        self.after(ms, Event::CloseAll(self.incarnation));
    }

    pub fn degrade(&mut self, is_on: bool) {
        // A commit under way ends first: the writer is one thread.
        if self.store.is_committing() {
            return if is_on {
            } else {
                self.after(1, Event::Recover(self.incarnation))
            };
        }
        for event in self.store.degrade(is_on) {
            self.publish(event);
        }
    }

    fn administer(&mut self) {
        let user = UserId::parse(&format!("u{}", self.dice.below(self.plan.users))).expect("a valid name");
        let act = match self.dice.below(8) {
            2 | 3 => AdminAct::Notify(Box::new(NewItem {
                user: user.clone(),
                name: "above".into(),
                data: "{}".into(),
                priority: self.dice.pick(&[Priority::Critical, Priority::Low]),
                ttl_ms: None,
                from: None,
                covers: None,
            })),
            0 => AdminAct::Disconnect { user: user.clone(), reason: "go".into() },
            1 => AdminAct::Revoke(Revocation::UserBefore(user.clone(), self.now / 1_000)),
            _ => AdminAct::Publish {
                room: RoomName::parse(&format!("r{}", self.dice.below(self.plan.rooms))).expect("a valid name"),
                author: user.clone(),
                client_id: None,
                body: "said from above".into(),
                meta: None,
                priority: Priority::Normal,
            },
        };
        let token = Token(self.dice.bits());
        self.admin_asked.insert(token);
        let shard = usize::from(shard_of(&user, self.plan.shards).0);
        trace!("admin {act:?}");
        self.handle(shard, Input::Admin(AdminRequest { token, act }));
    }

    /// The faults end: slow clients read, the store writes, nothing is lost any more.
    pub fn heal(&mut self) {
        trace!("heal");
        self.heals = true;
        self.plan.heal();
        self.degrade(false);
        for link in &mut self.links {
            link.stalled_until = 0;
            link.window = 1 << 20;
        }
        // No token ends while it is looked at whether everybody has everything.
        for client in &mut self.clients {
            client.wants_refresh = true;
        }
    }
}
