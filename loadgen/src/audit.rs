//! Holds every entry that comes against what is known: what others saw under its number (the [`Ledger`])
//! and, of a message, what was sent, by whom and where to (the [`Roll`]). Pure.

use crate::body::Filler;
use crate::dialect::Dialect;
use crate::roll::{self, Known, Roll};
use crate::scan;
use crate::tally::Tally;
use crate::verify::{Facts, Ledger, Seq, Sight};
use crate::world::World;

/// The books that an entry of one room is held against.
pub struct Audit<'a> {
    /// Names.
    pub world: &'a World,
    /// The room's.
    pub ledger: &'a mut Ledger,
    /// What the thread sent.
    pub roll: &'a mut Roll,
    /// Fillers of bodies.
    pub filler: &'a Filler,
    /// Counts.
    pub tally: &'a mut Tally,
}

impl Audit<'_> {
    /// An entry that a user got, `room` being the roll's number of its room. Returns when the message was meant
    /// to be sent (0: it is no message of this tool).
    pub fn entry(&mut self, user: u32, room: u32, seq: Seq, is_message: bool, payload: &[u8]) -> u64 {
        let bytes = self.world.hasher.hash_one(payload);
        match self.ledger.look(seq, bytes) {
            Sight::Same(sent_ns) => sent_ns,
            Sight::OtherBytes(sent_ns) => {
                let same = scan::content(payload).is_ok_and(|c| self.ledger.is_same_content(seq, self.hash(&c)));
                self.tally.differing += u64::from(!same);
                sent_ns
            }
            Sight::Forgotten => {
                self.tally.unchecked += 1;
                let content = scan::content(payload).ok().filter(|_| is_message);
                content.map_or(0, |content| self.identify(user, room, &content, seq, false))
            }
            Sight::New => {
                let Ok(content) = scan::content(payload) else {
                    self.tally.malformed += 1;
                    return 0;
                };
                let sent_ns = if is_message { self.identify(user, room, &content, seq, true) } else { 0 };
                let facts = Facts { bytes, content: self.hash(&content), sent_ns };
                self.ledger.learn(seq, facts);
                sent_ns
            }
        }
    }

    /// Looks a message up in the books of who sent it. `is_first`: nobody in this thread has seen its number; what
    /// came too late for the ledger is looked up each time it comes, and what its id alone tells is held all the same.
    fn identify(&mut self, user: u32, room: u32, content: &scan::Content<'_>, seq: Seq, is_first: bool) -> u64 {
        let (world, tally) = (self.world, &mut *self.tally);
        let client = content.client_id.and_then(scan::hex16).unwrap_or(0);
        let told_ns = scan::hex16(content.body).unwrap_or(0);
        let thread = roll::thread_of(client);
        let known = if thread == Some(world.thread_of(user)) {
            self.roll.on_seen(client, room, seq, is_first)
        } else if thread.is_some_and(|thread| world.is_in_room(thread, world.room_of(user))) {
            // Another thread's: it hears of it as well, and has the book.
            Known::Elsewhere
        } else {
            Known::Invented
        };
        let sent_ns = match known {
            Known::Ours { sent_ns, author, is_acked_right } => {
                tally.wrong_acks += u64::from(!is_acked_right);
                // Elsewhere nobody has a name.
                let is_author = world.dialect != Dialect::Antiphon || world.user_of(content.who) == Some(author);
                tally.wrong_authors += u64::from(!is_author);
                sent_ns
            }
            Known::Elsewhere | Known::Forgotten => told_ns,
            Known::Again => {
                tally.stored_again += 1;
                return 0;
            }
            Known::Invented => {
                tally.invented += 1;
                return 0;
            }
        };
        let is_body_right = told_ns == sent_ns && content.body.get(16..) == Some(self.filler.of(client));
        tally.wrong_bodies += u64::from(!is_body_right);
        // A message meant for the run's first nanosecond is still a message.
        sent_ns.max(1)
    }

    /// Of what must be the same for everybody.
    fn hash(&self, content: &scan::Content<'_>) -> u64 {
        self.world.hasher.hash_one((content.kind, content.seq, content.who, content.client_id, content.body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Message;
    use crate::roll::first_id;
    use crate::world::tests::world;
    use std::net::{Ipv4Addr, SocketAddrV4};

    struct Books {
        world: World,
        ledger: Ledger,
        roll: Roll,
        filler: Filler,
        tally: Tally,
    }

    impl Books {
        /// Two users in one room; user 1 has sent one message, meant for 7 ns.
        fn new() -> Self {
            let world = world(2, 2, 1, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9));
            let mut roll = Roll::new(0);
            roll.add(Message { client: first_id(0), sent_ns: 7 }, 0, 1);
            Self { world, ledger: Ledger::new(2), roll, filler: Filler::new(32), tally: Tally::default() }
        }

        fn event(&self, seq: Seq, author: &str, client: u64, body: &str) -> String {
            format!(
                r#"{{"type":"message:created","room":"r","seq":{seq},"author":"{author}","client_id":"{client:016x}","body":"{body}"}}"#
            )
        }

        fn body(&self) -> String {
            format!("{:016x}{}", 7, String::from_utf8_lossy(self.filler.of(first_id(0))))
        }

        fn come(&mut self, seq: Seq, event: &str) -> u64 {
            let Self { world, ledger, roll, filler, tally } = self;
            Audit { world, ledger, roll, filler, tally }.entry(0, 0, seq, true, event.as_bytes())
        }
    }

    #[test]
    fn the_author_is_who_sent_it() {
        let mut books = Books::new();
        let (good, mallory) = (books.world.user_name(1), books.world.user_name(0));
        let honest = books.event(1, &good, first_id(0), &books.body());
        assert_eq!((books.come(1, &honest), books.tally.clone()), (7, Tally::default()));
        let mut books = Books::new();
        let forged = books.event(1, &mallory, first_id(0), &books.body());
        assert_eq!((books.come(1, &forged), books.tally.wrong_authors), (7, 1));
        books.come(1, &forged);
        assert_eq!(books.tally.wrong_authors, 1, "counted when first seen");
        let mut books = Books::new();
        let stranger = books.event(1, "mallory", first_id(0), &books.body());
        books.come(1, &stranger);
        assert_eq!(books.tally.wrong_authors, 1);
        let mut books = Books::new();
        books.world.dialect = Dialect::Plain;
        books.come(1, &stranger);
        assert_eq!(books.tally, Tally::default(), "where nobody has a name");
    }

    #[test]
    fn what_comes_too_late_to_compare_is_still_held_against_its_id() {
        let late = |change: fn(&Books) -> String| {
            let mut books = Books::new();
            let name = books.world.user_name(1);
            let honest = books.event(1, &name, first_id(0), &books.body());
            books.roll.on_ack(first_id(0), 1);
            books.come(1, &honest);
            // The ledger has two places: number 3 takes that of 1.
            books.ledger.learn(3, Facts { bytes: 0, content: 0, sent_ns: 0 });
            let event = change(&books);
            books.come(1, &event);
            assert_eq!(books.tally.unchecked, 1);
            (books.tally.wrong_bodies, books.tally.invented)
        };
        assert_eq!(late(|books| books.event(1, &books.world.user_name(1), first_id(0), &books.body())), (0, 0));
        assert_eq!(late(|books| books.event(1, &books.world.user_name(1), first_id(0), "corrupt")), (1, 0));
        assert_eq!(late(|books| books.event(1, &books.world.user_name(1), 5, &books.body())), (0, 1));
    }
}
