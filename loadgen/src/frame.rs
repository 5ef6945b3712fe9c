//! The client's side of WebSocket framing (RFC 6455 section 5): whole messages out of received
//! bytes, masked frames into an output buffer. Pure; no allocation for a message that lies whole in
//! one received buffer.

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// A whole text message.
    Text,
    /// A whole binary message.
    Binary,
    /// Close, with its code and reason as payload.
    Close,
    /// Ping.
    Ping,
    /// Pong.
    Pong,
}

/// The server broke the framing rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFrame(pub &'static str);

/// Largest message taken from a server, bytes; a resume's reply may hold a MiB of events.
const MESSAGE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Collects what does not lie whole in one buffer.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// The beginning of a frame whose end has not come.
    partial: Vec<u8>,
    /// Payloads of a fragmented message so far, and what it is.
    fragments: Option<(Opcode, Vec<u8>)>,
}

/// A header, read.
struct Header {
    is_final: bool,
    code: u8,
    header_bytes: usize,
    total_bytes: usize,
}

impl FrameReader {
    /// Takes received bytes and calls `each` with every message that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Opcode, &[u8])) -> Result<(), BadFrame> {
        while !self.partial.is_empty() && !bytes.is_empty() {
            // Take just what the frame begun lacks: first its header, then the rest.
            let lacking = match header(&self.partial)? {
                Some(header) => header.total_bytes - self.partial.len(),
                None => 1,
            };
            let (taken, rest) = bytes.split_at(lacking.min(bytes.len()));
            self.partial.extend_from_slice(taken);
            bytes = rest;
            if let Some(header) = header(&self.partial)?
                && header.total_bytes == self.partial.len()
            {
                let whole = std::mem::take(&mut self.partial);
                self.take(&header, &whole[header.header_bytes..], &mut each)?;
            }
        }
        loop {
            match header(bytes)? {
                Some(header) if header.total_bytes <= bytes.len() => {
                    let (whole, rest) = bytes.split_at(header.total_bytes);
                    self.take(&header, &whole[header.header_bytes..], &mut each)?;
                    bytes = rest;
                }
                _ => break,
            }
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn take(&mut self, header: &Header, payload: &[u8], each: &mut impl FnMut(Opcode, &[u8])) -> Result<(), BadFrame> {
        let opcode = match header.code {
            0 => {
                let (opcode, mut all) = self.fragments.take().ok_or(BadFrame("continuation of nothing"))?;
                all.extend_from_slice(payload);
                if all.len() as u64 > MESSAGE_BYTES_MAX {
                    return Err(BadFrame("message too big"));
                }
                if header.is_final {
                    each(opcode, &all);
                } else {
                    self.fragments = Some((opcode, all));
                }
                return Ok(());
            }
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return Err(BadFrame("unknown opcode")),
        };
        match (header.is_final, opcode) {
            (true, Opcode::Text | Opcode::Binary) if self.fragments.is_some() => {
                return Err(BadFrame("a new message inside a fragmented one"));
            }
            (true, _) => each(opcode, payload),
            (false, Opcode::Text | Opcode::Binary) if self.fragments.is_none() => {
                self.fragments = Some((opcode, payload.to_vec()));
            }
            (false, _) => return Err(BadFrame("a fragment where none may be")),
        }
        Ok(())
    }
}

/// Reads a frame's header; `None` when more bytes are needed.
fn header(bytes: &[u8]) -> Result<Option<Header>, BadFrame> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(BadFrame("reserved bits set"));
    }
    if second & 0x80 != 0 {
        return Err(BadFrame("a masked frame from the server"));
    }
    let (header_bytes, len) = match second {
        126 => match *bytes {
            [_, _, a, b, ..] => (4, u64::from(u16::from_be_bytes([a, b]))),
            _ => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|long| <[u8; 8]>::try_from(long).ok()) {
            Some(long) => (10, u64::from_be_bytes(long)),
            None => return Ok(None),
        },
        short => (2, u64::from(short)),
    };
    if len > MESSAGE_BYTES_MAX {
        return Err(BadFrame("message too big"));
    }
    if first & 0x08 != 0 && len > 125 {
        return Err(BadFrame("a long control frame"));
    }
    let total_bytes = header_bytes + usize::try_from(len).map_err(|_| BadFrame("message too big"))?;
    Ok(Some(Header { is_final: first & 0x80 != 0, code: first & 0x0f, header_bytes, total_bytes }))
}

/// Appends one masked frame whose payload `write` appends.
pub fn push_masked(out: &mut Vec<u8>, opcode: Opcode, mask: u32, write: impl FnOnce(&mut Vec<u8>)) {
    // Room for the longest header of what this tool sends; moved when a shorter one suffices.
    const ROOM: usize = 8;
    let start = out.len();
    out.resize(start + ROOM, 0);
    write(out);
    let len = out.len() - start - ROOM;
    let code = match opcode {
        Opcode::Text => 1,
        Opcode::Binary => 2,
        Opcode::Close => 8,
        Opcode::Ping => 9,
        Opcode::Pong => 10,
    };
    let mask = mask.to_be_bytes();
    out[start] = 0x80 | code;
    let header_bytes = if len < 126 {
        out[start + 1] = 0x80 | len as u8;
        6
    } else {
        let len = u16::try_from(len).expect("this tool's frames are under 64 KiB");
        out[start + 1] = 0x80 | 126;
        out[start + 2..start + 4].copy_from_slice(&len.to_be_bytes());
        8
    };
    out[start + header_bytes - 4..start + header_bytes].copy_from_slice(&mask);
    if header_bytes < ROOM {
        out.copy_within(start + ROOM.., start + header_bytes);
        out.truncate(start + header_bytes + len);
    }
    apply_mask(&mut out[start + header_bytes..], mask);
}

fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        let value = u64::from_ne_bytes(word.try_into().expect("chunks of eight")) ^ wide;
        word.copy_from_slice(&value.to_ne_bytes());
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use antiphon::protocol::encode::frame_text;

    fn text(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame_text(&mut out, |o| o.extend_from_slice(payload));
        out
    }

    fn collect(reader: &mut FrameReader, bytes: &[u8]) -> Result<Vec<(Opcode, Vec<u8>)>, BadFrame> {
        let mut all = Vec::new();
        reader.feed(bytes, |opcode, payload| all.push((opcode, payload.to_vec())))?;
        Ok(all)
    }

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let payloads: Vec<Vec<u8>> =
            [0, 1, 125, 126, 127, 300, 65_535, 65_536].iter().map(|n| vec![b'x'; *n]).collect();
        let stream: Vec<u8> = payloads.iter().flat_map(|p| text(p)).collect();
        for piece in [1, 2, 3, 7, 64, 1_000, 70_000, stream.len()] {
            let mut reader = FrameReader::default();
            let mut got = Vec::new();
            for part in stream.chunks(piece) {
                got.extend(collect(&mut reader, part).unwrap());
            }
            assert_eq!(got.len(), payloads.len(), "pieces of {piece}");
            assert!(got.iter().zip(&payloads).all(|((o, a), b)| *o == Opcode::Text && a == b));
            assert!(reader.partial.is_empty());
        }
    }

    #[test]
    fn fragments_are_joined_around_control_frames() {
        let mut reader = FrameReader::default();
        let stream = [&[0x01, 2, b'a', b'b'][..], &[0x89, 1, b'p'], &[0x00, 1, b'c'], &[0x80, 1, b'd']].concat();
        let got = collect(&mut reader, &stream).unwrap();
        assert_eq!(got, [(Opcode::Ping, b"p".to_vec()), (Opcode::Text, b"abcd".to_vec())]);
    }

    #[test]
    fn broken_rules_are_named() {
        let cases: [(&[u8], &str); 7] = [
            (&[0x81, 0x80, 0, 0, 0, 0], "masked"),
            (&[0xc1, 0], "reserved"),
            (&[0x83, 0], "unknown"),
            (&[0x80, 0], "continuation"),
            (&[0x09, 0], "fragment"),
            (&[0x88, 126, 0, 126], "control"),
            (&[0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0], "big"),
        ];
        for (bytes, word) in cases {
            let error = collect(&mut FrameReader::default(), bytes).unwrap_err();
            assert!(error.0.contains(word), "{} for {bytes:?}", error.0);
        }
    }

    #[test]
    fn masked_frames_unmask_to_what_was_written() {
        for len in [0_usize, 1, 5, 8, 125, 126, 1_000] {
            let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut out = b"before".to_vec();
            push_masked(&mut out, Opcode::Text, 0xa1b2_c3d4, |o| o.extend_from_slice(&payload));
            let frame = &out[6..];
            let (len_bytes, at) =
                if len < 126 { (len, 2) } else { (usize::from(frame[2]) << 8 | usize::from(frame[3]), 4) };
            assert_eq!((frame[0], len_bytes, frame.len()), (0x81, len, at + 4 + len));
            let mask = &frame[at..at + 4];
            assert_eq!(mask, [0xa1, 0xb2, 0xc3, 0xd4]);
            let unmasked: Vec<u8> = frame[at + 4..].iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
            assert_eq!(unmasked, payload);
        }
    }
}
