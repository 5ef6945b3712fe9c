//! Sockets and their options: listeners that several shards share a port by, the load generator's
//! client sockets, and the one send of a turn.
//!
//! Holds no state. Every socket made here is non-blocking, closed on exec, and without Nagle's
//! delay; whoever wants to wait for one uses the ring.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Connections that the kernel completes before they are accepted; capped by `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// Most slices that one send takes (IOV_MAX).
pub const SLICES_MAX: usize = 1024;

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// The socket's buffer is full: wait for writability.
    WouldBlock,
    /// The connection is over, for this errno.
    Gone(i32),
}

/// A listener on `address` that other sockets of this user may share the port of (SO_REUSEPORT: the
/// kernel spreads connections over them by hash). Accepted sockets inherit TCP_NODELAY and the
/// congestion control. Port 0 takes a free port: see [`bound_address`].
///
/// # Errors
/// Address in use or not ours; `NotFound`-like errors when `congestion` is not available here.
pub fn listen(address: SocketAddr, congestion: Option<&str>) -> io::Result<OwnedFd> {
    let socket = take(address, congestion)?;
    listen_on(&socket)?;
    Ok(socket)
}

/// As [`listen`], but nobody can connect before [`listen_on`].
///
/// # Errors
/// As [`listen`].
pub fn take(address: SocketAddr, congestion: Option<&str>) -> io::Result<OwnedFd> {
    let socket = stream_socket(&address)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1_i32)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, &1_i32)?;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1_i32)?;
    if let Some(name) = congestion {
        set_bytes(&socket, libc::IPPROTO_TCP, libc::TCP_CONGESTION, name.as_bytes())?;
    }
    bind(&socket, &address)?;
    // With it a plain socket could bind and listen beside this one, as long as this one does not listen.
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &0_i32)?;
    Ok(socket)
}

/// Lets clients connect to what was taken.
///
/// # Errors
/// Another socket listens on the port.
pub fn listen_on(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1_i32)?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(())
}

/// A client's socket, not yet connected, bound to `source` when given; the port is chosen when it
/// connects (IP_BIND_ADDRESS_NO_PORT), so that each source address has all ports to each target.
///
/// # Errors
/// Out of file descriptors, or `source` is not an address of this host.
pub fn client(source: Option<Ipv4Addr>) -> io::Result<OwnedFd> {
    let any = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    let socket = stream_socket(&any)?;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1_i32)?;
    if let Some(source) = source {
        set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1_i32)?;
        bind(&socket, &SocketAddr::V4(SocketAddrV4::new(source, 0)))?;
    }
    Ok(socket)
}

/// Sets the bytes that the kernel buffers for receiving (SO_RCVBUF; it doubles the number). For
/// tests and load that want a slow reader to be noticed soon.
///
/// # Errors
/// `setsockopt(2)`'s.
pub fn set_receive_buffer(socket: &OwnedFd, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes)
}

/// Makes `close` reset the connection at once (SO_LINGER 0): no TIME_WAIT, unsent data is lost.
///
/// # Errors
/// `setsockopt(2)`'s.
pub fn reset_on_close(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })
}

/// The address that a listener got.
///
/// # Errors
/// `getsockname(2)`'s.
pub fn bound_address(listener: &OwnedFd) -> io::Result<SocketAddr> {
    TcpListener::from(listener.try_clone()?).local_addr()
}

/// Ends both directions. Operations of the ring on the socket complete; closing the descriptor alone
/// would leave them, and the connection, alive.
pub fn shutdown(fd: RawFd) {
    // SAFETY: no pointers. An error means that the connection is over already.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Ends this side's direction: the peer reads everything, then the end.
pub fn shutdown_write(fd: RawFd) {
    // SAFETY: no pointers. An error means that the connection is over already.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Sends as much of `slices` as the socket takes, in one system call; never blocks, never raises
/// SIGPIPE. At most the first [`SLICES_MAX`] slices go. Returns the bytes taken.
///
/// # Errors
/// [`SendError`].
pub fn send_slices(fd: RawFd, slices: &[IoSlice<'_>]) -> Result<usize, SendError> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    loop {
        let sent = match slices {
            [] => return Ok(0),
            // SAFETY: the slice is readable for its length during the call.
            [one] => unsafe { libc::send(fd, one.as_ptr().cast(), one.len(), flags) },
            many => {
                // SAFETY: all zero is a valid msghdr (no name, no control data).
                let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
                // IoSlice is guaranteed to have iovec's layout; sendmsg does not write through it.
                message.msg_iov = many.as_ptr().cast::<libc::iovec>().cast_mut();
                message.msg_iovlen = many.len().min(SLICES_MAX);
                // SAFETY: the header names `msg_iovlen` readable slices that outlive the call.
                unsafe { libc::sendmsg(fd, &raw const message, flags) }
            }
        };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(sent);
        }
        match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
            libc::EINTR => {}
            libc::EAGAIN => return Err(SendError::WouldBlock),
            errno => return Err(SendError::Gone(errno)),
        }
    }
}

fn stream_socket(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind(socket: &OwnedFd, address: &SocketAddr) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    match address {
        SocketAddr::V4(v4) => {
            let raw = sockaddr_in(v4);
            // SAFETY: `raw` is a sockaddr of the length given, alive during the call.
            check(unsafe { libc::bind(fd, (&raw const raw).cast(), socklen::<libc::sockaddr_in>()) })?;
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            check(unsafe { libc::bind(fd, (&raw const raw).cast(), socklen::<libc::sockaddr_in6>()) })?;
        }
    }
    Ok(())
}

/// The address as the kernel reads it.
pub(super) fn sockaddr_in(address: &SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

/// `size_of::<T>()` as a socket length.
pub(super) const fn socklen<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

/// `value` is a plain C integer or struct, as the option wants it.
fn set_option<T: Copy>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` is readable for its size, and the callers above pass types without padding.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const *value).cast::<u8>(), size_of::<T>()) };
    set_bytes(socket, level, option, bytes)
}

fn set_bytes(socket: &OwnedFd, level: i32, option: i32, bytes: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: `bytes` is readable for `len` during the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, bytes.as_ptr().cast(), len) })?;
    Ok(())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn listeners_share_a_port_and_pass_their_options_on() {
        let first = listen(loopback(), Some("reno")).unwrap();
        let address = bound_address(&first).unwrap();
        assert_ne!(address.port(), 0);
        let second = listen(address, None).unwrap();
        assert_eq!(bound_address(&second).unwrap(), address);
        drop(second);
        let listener = TcpListener::from(first);
        let _client = TcpStream::connect(address).unwrap();
        let accepted = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        };
        assert!(accepted.nodelay().unwrap());
        assert!(listen(loopback(), Some("no-such-control")).is_err());
    }

    #[test]
    fn clients_take_the_source_they_are_given() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = client(Some(Ipv4Addr::new(127, 9, 8, 7))).unwrap();
        let stream = TcpStream::from(socket);
        assert_eq!(stream.local_addr().unwrap().ip(), Ipv4Addr::new(127, 9, 8, 7));
        assert_eq!(stream.local_addr().unwrap().port(), 0, "the port waits for connect");
        assert!(stream.nodelay().unwrap());
        drop(listener);
    }

    #[test]
    fn sending_is_gathered_partial_and_never_fatal() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        let fd = ours.as_raw_fd();
        assert_eq!(send_slices(fd, &[]), Ok(0));
        assert_eq!(send_slices(fd, &[IoSlice::new(b"one")]), Ok(3));
        assert_eq!(send_slices(fd, &[IoSlice::new(b" two"), IoSlice::new(b""), IoSlice::new(b" three")]), Ok(10));
        let mut got = [0; 13];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"one two three");
        let many: Vec<IoSlice<'_>> = (0..2_000).map(|_| IoSlice::new(b"x")).collect();
        assert_eq!(send_slices(fd, &many), Ok(SLICES_MAX));
        let big = vec![0; 64 * 1024];
        let mut total = 0;
        let end = loop {
            match send_slices(fd, &[IoSlice::new(&big)]) {
                Ok(sent) => total += sent,
                Err(error) => break error,
            }
        };
        assert_eq!(end, SendError::WouldBlock);
        assert!(total > 0);
        drop(theirs);
        let gone = (0..100).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            send_slices(fd, &[IoSlice::new(b"x")]).err().filter(|e| matches!(e, SendError::Gone(_)))
        });
        assert!(matches!(gone, Some(SendError::Gone(libc::EPIPE | libc::ECONNRESET))), "{gone:?}");
    }
}
