//! The upgrade (RFC 6455 section 4.2.2).

use tungstenite::handshake::derive_accept_key;

/// Appends the answer to a request's head; `None` when it asks for no WebSocket.
pub fn answer(head: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const NAME: &[u8] = b"sec-websocket-key:";
    let key = head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then(|| value.trim_ascii())
    })?;
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    out.extend_from_slice(b"Sec-WebSocket-Accept: ");
    out.extend_from_slice(derive_accept_key(key).as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
    Some(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_answer_is_the_one_of_the_rfc() {
        let mut out = Vec::new();
        let head = b"GET / HTTP/1.1\r\nHost: x\r\nsec-webSocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nUpgrade: websocket";
        super::answer(head, &mut out).expect("it asks for one");
        let text = String::from_utf8(out).expect("it is text");
        assert!(text.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{text}");
        assert!(super::answer(b"GET / HTTP/1.1", &mut Vec::new()).is_none());
    }
}
