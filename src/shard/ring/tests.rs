//! Every operation of the ring, against real sockets on loopback, in both task-running modes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;
use crate::shard::socket;

const MODES: [TaskRun; 2] = [TaskRun::Deferred, TaskRun::Cooperative];

fn ring(mode: TaskRun, entries: u32, buffers: u16, buffer_bytes: u32) -> Ring {
    Ring::with_task_run(RingConfig { entries, buffers, buffer_bytes }, mode).unwrap()
}

/// Waits for the next completion, at most 5 s.
fn expect(ring: &mut Ring) -> Completion {
    let start = Instant::now();
    loop {
        if let Some(completion) = ring.next() {
            return completion;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "no completion came");
        ring.wait(Some(Duration::from_millis(100))).unwrap();
    }
}

/// Nothing arrives within 30 ms.
fn expect_none(ring: &mut Ring) {
    ring.wait(Some(Duration::from_millis(30))).unwrap();
    if let Some(completion) = ring.next() {
        panic!("unexpected {completion:?}");
    }
}

fn received(ring: &mut Ring, key: Key) -> (Vec<u8>, bool) {
    match expect(ring) {
        Completion::Received { key: got, buffer, len, armed } => {
            assert_eq!(got, key);
            let bytes = ring.buffer(&buffer, len).to_vec();
            ring.release(buffer);
            (bytes, armed)
        }
        other => panic!("expected bytes, got {other:?}"),
    }
}

fn ended(ring: &mut Ring, key: Key) -> Ended {
    match expect(ring) {
        Completion::ReceiveEnded { key: got, reason } if got == key => reason,
        other => panic!("expected the end of {key:?}, got {other:?}"),
    }
}

#[test]
fn keys_take_slots_and_generations_apart() {
    let key = Key::new((1 << 28) - 1, u32::MAX);
    assert_eq!((key.slot(), key.generation()), ((1 << 28) - 1, u32::MAX));
    assert_eq!(key.0 & kind::MASK, 0);
}

#[test]
fn impossible_sizes_are_refused() {
    for (buffers, bytes) in [(0, 64), (3, 64), (8, 0)] {
        let refused = Ring::new(RingConfig { entries: 8, buffers, buffer_bytes: bytes });
        assert_eq!(refused.err().map(|e| e.kind()), Some(io::ErrorKind::InvalidInput));
    }
}

#[test]
fn accepts_until_cancelled() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 8, 64);
        let listener = socket::listen("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let address = socket::bound_address(&listener).unwrap();
        ring.accept_multi(listener.as_raw_fd());
        for _ in 0..3 {
            let client = TcpStream::connect(address).unwrap();
            let Completion::Accepted(fd) = expect(&mut ring) else { panic!("expected a connection") };
            let accepted = TcpStream::from(fd);
            assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
            assert!(accepted.nodelay().unwrap());
            assert_eq!((&accepted).read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        ring.cancel_accept();
        assert!(matches!(expect(&mut ring), Completion::AcceptFailed(libc::ECANCELED)));
        expect_none(&mut ring);
        ring.accept_multi(listener.as_raw_fd());
        let _client = TcpStream::connect(address).unwrap();
        assert!(matches!(expect(&mut ring), Completion::Accepted(_)));
    }
}

#[test]
fn accept_of_a_bad_descriptor_fails_once() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 8, 64);
        let (not_listening, _other) = UnixStream::pair().unwrap();
        ring.accept_multi(not_listening.as_raw_fd());
        assert!(matches!(expect(&mut ring), Completion::AcceptFailed(1..)));
        expect_none(&mut ring);
    }
}

#[test]
fn receives_once() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 8, 64);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let key = Key::new(5, 9);
        ring.receive_once(ours.as_raw_fd(), key);
        expect_none(&mut ring);
        theirs.write_all(b"hello").unwrap();
        assert_eq!(received(&mut ring, key), (b"hello".to_vec(), false));
        theirs.write_all(b"more").unwrap();
        expect_none(&mut ring);
        ring.receive_once(ours.as_raw_fd(), key);
        assert_eq!(received(&mut ring, key), (b"more".to_vec(), false));
        drop(theirs);
        ring.receive_once(ours.as_raw_fd(), key);
        assert_eq!(ended(&mut ring, key), Ended::Eof);
    }
}

#[test]
fn receives_on_and_on_in_pieces_of_a_buffer() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 4, 16);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let key = Key::new(1, 1);
        ring.receive_multi(ours.as_raw_fd(), key);
        ring.submit().unwrap();
        theirs.write_all(b"0123456789abcdefghij").unwrap();
        let (mut all, mut armed) = received(&mut ring, key);
        while all.len() < 20 {
            if !armed {
                ring.receive_multi(ours.as_raw_fd(), key);
            }
            let (bytes, more) = received(&mut ring, key);
            assert!(bytes.len() <= 16);
            all.extend(bytes);
            armed = more;
        }
        assert_eq!(all, b"0123456789abcdefghij");
        assert!(armed);
        drop(theirs);
        assert_eq!(ended(&mut ring, key), Ended::Eof);
        expect_none(&mut ring);
    }
}

#[test]
fn a_reset_is_an_error() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 8, 64);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        ring.receive_multi(ours.as_raw_fd(), Key::new(2, 3));
        ring.submit().unwrap();
        let theirs = OwnedFd::from(theirs);
        socket::reset_on_close(&theirs).unwrap();
        drop(theirs);
        assert_eq!(ended(&mut ring, Key::new(2, 3)), Ended::Error(libc::ECONNRESET));
    }
}

#[test]
fn running_out_of_buffers_loses_nothing() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 2, 8);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let key = Key::new(7, 7);
        ring.receive_multi(ours.as_raw_fd(), key);
        theirs.write_all(&(0..40).collect::<Vec<u8>>()).unwrap();
        let mut held = Vec::new();
        let mut all = Vec::new();
        let mut shortages = 0;
        while all.len() < 40 {
            match expect(&mut ring) {
                Completion::Received { buffer, len, armed, .. } => {
                    all.extend_from_slice(ring.buffer(&buffer, len));
                    held.push(buffer);
                    if !armed {
                        ring.receive_multi(ours.as_raw_fd(), key);
                    }
                }
                Completion::ReceiveEnded { reason: Ended::NoBuffers, .. } => {
                    shortages += 1;
                    assert_eq!(held.len(), 2);
                    held.drain(..).for_each(|id| ring.release(id));
                    ring.receive_multi(ours.as_raw_fd(), key);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(all, (0..40).collect::<Vec<u8>>());
        assert!(shortages >= 1);
    }
}

#[test]
fn buffers_are_added_when_they_are_missed_and_nothing_is_lost() {
    const SOCKETS: u32 = 300;
    for mode in MODES {
        let mut ring = ring(mode, 1_024, 1_024, 64);
        let mut pairs: Vec<_> = (0..SOCKETS).map(|_| UnixStream::pair().unwrap()).collect();
        for (slot, (ours, _)) in (0..).zip(&pairs) {
            ring.receive_multi(ours.as_raw_fd(), Key::new(slot, 1));
        }
        ring.submit().unwrap();
        assert_eq!(ring.buffers.offered(), 128);
        let mut shortages = [0; 4];
        for (round, shortages) in (0_u8..).zip(&mut shortages) {
            for (slot, (_, theirs)) in (0_u8..=255).cycle().zip(&mut pairs) {
                theirs.write_all(&[round, slot]).unwrap();
            }
            let mut heard = vec![0; SOCKETS as usize];
            while heard.iter().sum::<u32>() < SOCKETS {
                let (held, ended) = gather(&mut ring, round, &mut heard);
                held.into_iter().for_each(|buffer| ring.release(buffer));
                *shortages += ended.len();
                for key in ended {
                    ring.receive_multi(pairs[key.slot() as usize].0.as_raw_fd(), key);
                }
            }
            assert!(heard.iter().all(|count| *count == 1), "round {round}");
        }
        assert_eq!(ring.buffers.offered(), 512, "more than 300 at once");
        assert!(shortages[0] > 0 && shortages[3] == 0, "missed at first, and then they suffice: {shortages:?}");
    }
}

/// Takes all that comes and gives no buffer back, until all are heard or nothing more comes: the
/// buffers, and who found none.
fn gather(ring: &mut Ring, round: u8, heard: &mut [u32]) -> (Vec<BufferId>, Vec<Key>) {
    let (mut held, mut ended) = (Vec::new(), Vec::new());
    while heard.contains(&0) {
        let completion = ring.next().or_else(|| {
            ring.wait(Some(Duration::from_millis(50))).unwrap();
            ring.next()
        });
        match completion {
            Some(Completion::Received { key, buffer, len, armed: true }) => {
                assert_eq!(ring.buffer(&buffer, len), [round, key.slot() as u8]);
                heard[key.slot() as usize] += 1;
                held.push(buffer);
            }
            Some(Completion::ReceiveEnded { key, reason: Ended::NoBuffers }) => ended.push(key),
            Some(other) => panic!("{other:?}"),
            None => break,
        }
    }
    (held, ended)
}

#[test]
fn who_asks_little_is_lent_little() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 1_024, 64);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ring.receive_multi(ours.as_raw_fd(), Key::new(1, 1));
        for round in 0..1_000_u32 {
            theirs.write_all(&round.to_le_bytes()).unwrap();
            assert_eq!(received(&mut ring, Key::new(1, 1)), (round.to_le_bytes().to_vec(), true));
        }
        assert_eq!(ring.buffers.offered(), 128);
    }
}

#[test]
fn cancelling_a_receive_ends_it_and_only_it() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 8, 64);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (ours2, mut theirs2) = UnixStream::pair().unwrap();
        // The same slot, one generation later: a stale cancel must not hit it.
        let (old, new) = (Key::new(3, 1), Key::new(3, 2));
        ring.receive_multi(ours.as_raw_fd(), old);
        ring.receive_multi(ours2.as_raw_fd(), new);
        ring.submit().unwrap();
        ring.cancel_receive(old);
        let (mut cancelled, mut over) = (false, false);
        while !(cancelled && over) {
            match expect(&mut ring) {
                Completion::Cancelled { key } if key == old => cancelled = true,
                Completion::ReceiveEnded { key, reason: Ended::Cancelled } if key == old => over = true,
                other => panic!("{other:?}"),
            }
        }
        ring.cancel_receive(old);
        assert!(matches!(expect(&mut ring), Completion::Cancelled { key } if key == old));
        theirs2.write_all(b"still here").unwrap();
        assert_eq!(received(&mut ring, new), (b"still here".to_vec(), true));
        theirs.write_all(b"nobody listens").unwrap();
        expect_none(&mut ring);
    }
}

#[test]
fn a_stale_completion_still_names_its_generation() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 8, 64);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ring.receive_multi(ours.as_raw_fd(), Key::new(4, 1));
        theirs.write_all(b"late").unwrap();
        ring.submit().unwrap();
        socket::shutdown(ours.as_raw_fd());
        drop(ours);
        let (ours2, mut theirs2) = UnixStream::pair().unwrap();
        ring.receive_multi(ours2.as_raw_fd(), Key::new(4, 2));
        theirs2.write_all(b"fresh").unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            match expect(&mut ring) {
                Completion::Received { key, buffer, len, .. } => {
                    seen.push((key.generation(), ring.buffer(&buffer, len).to_vec()));
                    ring.release(buffer);
                }
                Completion::ReceiveEnded { key, reason: Ended::Eof } => assert_eq!(key.generation(), 1),
                other => panic!("{other:?}"),
            }
        }
        seen.sort();
        assert_eq!(seen, [(1, b"late".to_vec()), (2, b"fresh".to_vec())]);
    }
}

#[test]
fn says_when_a_full_socket_takes_bytes_again() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 8, 64);
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let key = Key::new(6, 2);
        ring.poll_writable(ours.as_raw_fd(), key);
        assert!(matches!(expect(&mut ring), Completion::Writable { key: k, error: None } if k == key));
        let block = [0; 4096];
        while send_slices(ours.as_raw_fd(), &[io::IoSlice::new(&block)]).is_ok() {}
        ring.poll_writable(ours.as_raw_fd(), key);
        expect_none(&mut ring);
        while (&theirs).read(&mut [0; 65_536]).is_ok() {}
        assert!(matches!(expect(&mut ring), Completion::Writable { key: k, error: None } if k == key));
        while send_slices(ours.as_raw_fd(), &[io::IoSlice::new(&block)]).is_ok() {}
        ring.poll_writable(ours.as_raw_fd(), key);
        ring.submit().unwrap();
        ring.cancel_writable(key);
        assert!(matches!(expect(&mut ring), Completion::Writable { error: Some(libc::ECANCELED), .. }));
        expect_none(&mut ring);
    }
}

#[test]
fn connects_or_says_why_not() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 8, 64);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("bound to IPv4") };
        let source = Ipv4Addr::new(127, 3, 2, 1);
        let sockets: Vec<_> = (0..20).map(|_| socket::client(Some(source)).unwrap()).collect();
        for (slot, client) in sockets.iter().enumerate() {
            ring.connect(client.as_raw_fd(), Key::new(slot as u32, 1), address);
        }
        let mut slots: Vec<u32> = (0..20)
            .map(|_| match expect(&mut ring) {
                Completion::Connected { key, result: Ok(()) } => key.slot(),
                other => panic!("{other:?}"),
            })
            .collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..20).collect::<Vec<_>>());
        assert_eq!(listener.accept().unwrap().1.ip(), source);
        assert!(ring.addresses.is_empty(), "addresses go when the kernel has copied them");
        drop(listener);
        let client = socket::client(None).unwrap();
        ring.connect(client.as_raw_fd(), Key::new(30, 1), address);
        assert!(matches!(expect(&mut ring), Completion::Connected { result: Err(libc::ECONNREFUSED), .. }));
    }
}

#[test]
fn the_doorbell_ends_a_wait_again_and_again() {
    for mode in MODES {
        let bell = Doorbell::new().unwrap();
        let mut ring = ring(mode, 8, 8, 64);
        ring.watch_doorbell(&bell);
        for _ in 0..5 {
            expect_none(&mut ring);
            bell.prepare_sleep();
            assert!(bell.ring());
            assert!(matches!(expect(&mut ring), Completion::DoorbellRung));
        }
        std::thread::scope(|scope| {
            bell.prepare_sleep();
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                bell.ring();
            });
            ring.wait(None).unwrap();
            assert!(matches!(ring.next(), Some(Completion::DoorbellRung)));
        });
    }
}

#[test]
fn a_wait_keeps_its_time() {
    for mode in MODES {
        let mut ring = ring(mode, 8, 8, 64);
        let start = Instant::now();
        ring.wait(Some(Duration::from_millis(50))).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(50));
        let start = Instant::now();
        ring.wait(Some(Duration::ZERO)).unwrap();
        assert!(start.elapsed() < Duration::from_millis(50));
        assert!(ring.next().is_none());
    }
}

#[test]
fn a_full_queue_submits_itself() {
    for mode in MODES {
        // Far more operations than the queue (4) or the completion queue (64) holds at once.
        let mut ring = ring(mode, 4, 8, 64);
        let (ours, _theirs) = UnixStream::pair().unwrap();
        for n in 0..1_000 {
            ring.poll_writable(ours.as_raw_fd(), Key::new(n, 1));
        }
        let mut slots: Vec<u32> = (0..1_000)
            .map(|_| match expect(&mut ring) {
                Completion::Writable { key, error: None } => key.slot(),
                other => panic!("{other:?}"),
            })
            .collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..1_000).collect::<Vec<_>>());
        expect_none(&mut ring);
    }
}

#[test]
fn ten_thousand_messages_each_way() {
    const MESSAGES: usize = 10_000;
    for mode in MODES {
        let mut ring = ring(mode, 64, 16, 512);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        ours.set_nonblocking(true).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        let echo = std::thread::spawn(move || {
            let mut theirs = theirs;
            let mut buffer = [0; 8192];
            while let Ok(len @ 1..) = theirs.read(&mut buffer) {
                theirs.write_all(&buffer[..len]).unwrap();
            }
        });
        let (fd, key) = (ours.as_raw_fd(), Key::new(1, 1));
        let message = |n: usize| format!("{n:07}\n").into_bytes();
        let mut sent = Vec::new();
        (0..MESSAGES).for_each(|n| sent.extend(message(n)));
        let (mut at, mut got, mut polling) = (0, Vec::new(), false);
        ring.receive_multi(fd, key);
        while got.len() < sent.len() {
            while at < sent.len() && !polling {
                match send_slices(fd, &[io::IoSlice::new(&sent[at..sent.len().min(at + 800)])]) {
                    Ok(n) => at += n,
                    Err(SendError::WouldBlock) => {
                        ring.poll_writable(fd, key);
                        polling = true;
                    }
                    Err(gone) => panic!("{gone:?}"),
                }
            }
            match expect(&mut ring) {
                Completion::Received { buffer, len, armed, .. } => {
                    got.extend_from_slice(ring.buffer(&buffer, len));
                    ring.release(buffer);
                    if !armed {
                        ring.receive_multi(fd, key);
                    }
                }
                Completion::ReceiveEnded { reason: Ended::NoBuffers, .. } => ring.receive_multi(fd, key),
                Completion::Writable { error: None, .. } => polling = false,
                other => panic!("{other:?}"),
            }
        }
        assert!(got == sent, "bytes differ");
        socket::shutdown(fd);
        echo.join().unwrap();
    }
}

#[test]
fn a_ring_that_ends_lets_go_of_everything() {
    for mode in MODES {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let listener = socket::listen("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let bell = Doorbell::new().unwrap();
        let mut ring = ring(mode, 8, 8, 64);
        ring.receive_multi(ours.as_raw_fd(), Key::new(1, 1));
        ring.accept_multi(listener.as_raw_fd());
        ring.watch_doorbell(&bell);
        ring.submit().unwrap();
        drop(ring);
        drop(ours);
        // The kernel ends a ring in its own time, which on a busy machine is long.
        theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0, "no operation keeps the socket open");
    }
}
