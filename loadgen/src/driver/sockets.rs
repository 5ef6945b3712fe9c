//! A driver's sockets: connecting, arming receives, one send per dirty client, letting go.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;

use antiphon::shard::ring::{Key, SendError, send_slices};
use antiphon::shard::socket;

use super::{Driver, Link};

impl Driver {
    pub(super) fn connect_more(&mut self) {
        while self.connecting < self.connecting_max {
            let Some(slot) = self.queue.pop_front() else { return };
            if let Err(error) = self.connect(slot) {
                self.connecting += 1;
                self.on_connect_failure(slot, &error);
                return;
            }
            self.connecting += 1;
        }
    }

    pub(super) fn connect(&mut self, slot: u32) -> io::Result<()> {
        let client = &mut self.clients[slot as usize];
        let socket = socket::client(self.world.source_of(client.user))?;
        if let Some(stall) = self.plan.stall.filter(|_| client.is_slow) {
            socket::set_receive_buffer(&socket, stall.receive_buffer)?;
        }
        client.started_ns = self.now_ns;
        let link = &mut self.links[slot as usize];
        self.ring.connect(socket.as_raw_fd(), Key::new(slot, link.generation), self.world.target);
        link.fd = Some(socket);
        Ok(())
    }

    /// The slot that a completion means, unless the connection is an earlier one.
    pub(super) fn slot_of(&self, key: Key) -> Option<u32> {
        let link = self.links.get(key.slot() as usize)?;
        (link.fd.is_some() && link.generation == key.generation()).then_some(key.slot())
    }

    pub(super) fn arm(&mut self, slot: u32) {
        let link = &mut self.links[slot as usize];
        if let Some(fd) = link.fd.as_ref().filter(|_| !link.is_armed && !link.is_stalled) {
            self.ring.receive_multi(fd.as_raw_fd(), Key::new(slot, link.generation));
            link.is_armed = true;
        }
    }

    pub(super) fn mark_dirty(&mut self, slot: u32) {
        let link = &mut self.links[slot as usize];
        if !link.is_dirty && !link.is_polling && link.fd.is_some() && !self.clients[slot as usize].out.is_empty() {
            link.is_dirty = true;
            self.dirty.push(slot);
        }
    }

    pub(super) fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            self.links[slot as usize].is_dirty = false;
            self.flush_one(slot);
        }
        self.dirty = dirty;
    }

    pub(super) fn flush_one(&mut self, slot: u32) {
        /// Output buffers above this are given back when empty.
        const KEEP_BYTES: usize = 4_096;
        let link = &mut self.links[slot as usize];
        let out = &mut self.clients[slot as usize].out;
        let Some(fd) = link.fd.as_ref().map(AsRawFd::as_raw_fd) else { return };
        while link.sent < out.len() {
            match send_slices(fd, &[IoSlice::new(&out[link.sent..])]) {
                Ok(sent) => link.sent += sent,
                Err(SendError::WouldBlock) => {
                    link.is_polling = true;
                    self.ring.poll_writable(fd, Key::new(slot, link.generation));
                    return;
                }
                Err(SendError::Gone(errno)) => {
                    self.on_closed(slot, -i64::from(errno));
                    return;
                }
            }
        }
        link.sent = 0;
        out.clear();
        if out.capacity() > KEEP_BYTES {
            *out = Vec::new();
        }
    }

    /// Ends a connection from our side, at once.
    pub(super) fn drop_link(&mut self, slot: u32) {
        let link = &mut self.links[slot as usize];
        if let Some(fd) = link.fd.take() {
            // Shut down first: operations in flight hold the socket, and end by this.
            socket::shutdown(fd.as_raw_fd());
            // Where it fails the connection is gone already.
            let _ = socket::reset_on_close(&fd);
        }
        *link = Link { generation: link.generation.wrapping_add(1), is_dirty: link.is_dirty, ..Link::default() };
        // Nobody will answer these: their room owes others instead.
        let room = self.clients[slot as usize].local_room;
        let lost = self.clients[slot as usize].end().count();
        (0..lost).for_each(|_| self.on_done(room));
    }
}
