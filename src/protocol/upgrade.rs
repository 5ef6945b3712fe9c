//! HTTP/1.1 request head to WebSocket (RFC 9112, RFC 6455 section 4.2), and the few HTTP answers.
//!
//! [`read_head`] looks at the bytes received so far and says: more needed, this is what is wanted,
//! or this is refused. It is stricter than HTTP asks for, because nothing but an upgrade or a health
//! check has business on this port: lines end in CRLF, no control characters, no folded lines, no
//! body, no header that matters given twice. What comes after the head (the first frames) is left
//! alone: `consumed` says where it begins.
//!
//! It refuses to judge the token (a bad one is told after the upgrade, by close code 4001, since
//! browsers cannot read an HTTP status here) and hands out no header text, so that none reaches a log.

use std::borrow::Cow;
use std::io::Write as _;

use tungstenite::handshake::derive_accept_key;

use super::ids::DeviceId;

mod origin;
pub use origin::Origins;

/// The subprotocol that this server speaks.
pub const SUBPROTOCOL: &str = "antiphon.v1";
/// Every version of the subprotocol begins so.
const SUBPROTOCOL_FAMILY: &str = "antiphon.";
/// A subprotocol that is no protocol but a browser's way to bring a token.
const BEARER_SUBPROTOCOL: &str = "bearer.";

/// Bounds of a request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes up to and with the empty line.
    pub bytes_max: usize,
    /// Header lines.
    pub headers_max: usize,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    /// `GET /ws`, a valid upgrade.
    WebSocket(UpgradeRequest<'a>),
    /// `GET /health/live`
    HealthLive,
    /// `GET /health/ready`
    HealthReady,
}

/// A valid upgrade request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeRequest<'a> {
    /// Value of `Sec-WebSocket-Accept`.
    pub accept: String,
    /// The token, unjudged.
    pub token: TokenOffer<'a>,
    /// What was agreed on.
    pub subprotocol: Subprotocol<'a>,
    /// Which device; `default` when not given.
    pub device: DeviceId,
    /// The client takes arrays of events (`batch=1`).
    pub batch: bool,
}

/// Where the token stands. It may come as `Authorization: Bearer`, as a `bearer.` subprotocol or as
/// `access_token` in the query; given more than once, it must be the same (RFC 6750 section 2 forbids
/// to use several ways, and a request with two identities is nobody's).
#[derive(Clone, PartialEq, Eq)]
pub enum TokenOffer<'a> {
    /// None came.
    Missing,
    /// One came.
    One(Cow<'a, str>),
    /// Several came that differ: refuse with 4001.
    Conflict,
}

impl TokenOffer<'_> {
    fn add(&mut self, token: Cow<'_, str>) -> bool {
        match self {
            Self::Missing => true,
            Self::One(first) => {
                if *first != token {
                    *self = Self::Conflict;
                }
                false
            }
            Self::Conflict => false,
        }
    }
}

impl std::fmt::Debug for TokenOffer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "Missing",
            Self::One(_) => "One(…)",
            Self::Conflict => "Conflict",
        })
    }
}

/// The outcome of subprotocol negotiation (RFC 6455 section 4.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subprotocol<'a> {
    /// Nothing of ours was offered: version 1 is spoken, the answer names no subprotocol.
    Unnamed,
    /// [`SUBPROTOCOL`] was offered and is selected.
    V1,
    /// Only other versions were offered: upgrade, then close with 4006. The answer names the one
    /// offered, as a browser would otherwise drop the connection before it can read the close code.
    Unsupported(&'a str),
}

/// Why a request is answered with an HTTP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// 400, and what is wrong. Holds nothing of the peer's.
    BadRequest(&'static str),
    /// 403: the `Origin` is not on the list.
    Forbidden,
    /// 404
    NotFound,
    /// 405: only GET.
    MethodNotAllowed,
    /// 426: `/ws` wants an upgrade, of version 13.
    UpgradeRequired,
    /// 431: too many bytes or lines.
    HeadTooLarge,
    /// 503: no room for a further connection, or draining.
    Unavailable,
}

impl Refused {
    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::UpgradeRequired => 426,
            Self::HeadTooLarge => 431,
            Self::Unavailable => 503,
        }
    }

    /// What is wrong, for the log and the body.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::BadRequest(reason) => reason,
            Self::Forbidden => "this origin may not connect",
            Self::NotFound => "nothing here",
            Self::MethodNotAllowed => "only GET",
            Self::UpgradeRequired => "a WebSocket upgrade of version 13 is needed",
            Self::HeadTooLarge => "the request head is too large",
            Self::Unavailable => "no further connections right now",
        }
    }

    /// Appends the whole response. Close the connection after it.
    pub fn write_response(self, out: &mut Vec<u8>) {
        let (phrase, name, extra) = match self {
            Self::BadRequest(_) => ("Bad Request", "bad_request", ""),
            Self::Forbidden => ("Forbidden", "forbidden", ""),
            Self::NotFound => ("Not Found", "not_found", ""),
            Self::MethodNotAllowed => ("Method Not Allowed", "method_not_allowed", "Allow: GET\r\n"),
            Self::UpgradeRequired => {
                ("Upgrade Required", "upgrade_required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")
            }
            Self::HeadTooLarge => ("Request Header Fields Too Large", "head_too_large", ""),
            Self::Unavailable => ("Service Unavailable", "unavailable", "Retry-After: 1\r\n"),
        };
        let body = format!(r#"{{"error":"{name}","message":"{}"}}"#, self.reason());
        // Whoever sends `Upgrade` must name it in `Connection` (RFC 9110 section 7.8).
        let connection = if matches!(self, Self::UpgradeRequired) { "close, Upgrade" } else { "close" };
        write_json(out, self.status(), phrase, connection, extra, &body);
    }
}

/// Appends the answer to a health check: 200, or 503 when not `ok`.
pub fn write_health(out: &mut Vec<u8>, ok: bool) {
    if ok {
        write_json(out, 200, "OK", "close", "Cache-Control: no-store\r\n", r#"{"status":"ok"}"#);
    } else {
        let extra = "Cache-Control: no-store\r\nRetry-After: 1\r\n";
        write_json(out, 503, "Service Unavailable", "close", extra, r#"{"status":"unavailable"}"#);
    }
}

fn write_json(out: &mut Vec<u8>, status: u16, phrase: &str, connection: &str, extra: &str, body: &str) {
    write!(
        out,
        "HTTP/1.1 {status} {phrase}\r\nConnection: {connection}\r\nContent-Type: application/json\r\n{extra}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("writing to memory");
}

impl UpgradeRequest<'_> {
    /// Appends the 101 response. A `bearer.` subprotocol is never echoed.
    pub fn write_response(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
        );
        out.extend_from_slice(self.accept.as_bytes());
        let selected = match self.subprotocol {
            Subprotocol::Unnamed => None,
            Subprotocol::V1 => Some(SUBPROTOCOL),
            Subprotocol::Unsupported(offered) => Some(offered),
        };
        if let Some(selected) = selected {
            out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.extend_from_slice(selected.as_bytes());
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// Reads the request head at the front of `bytes`, all that was received so far.
///
/// `scanned` starts at 0 and carries over from call to call how far the search for the head's end
/// has come, so that a head that arrives byte by byte costs no more than one that arrives whole.
///
/// Returns nothing while the head is incomplete, else what is asked for and how many bytes the head
/// has; what follows them belongs to the WebSocket.
///
/// # Errors
/// [`Refused`]: answer with [`Refused::write_response`] and close.
pub fn read_head<'a>(
    bytes: &'a [u8],
    scanned: &mut usize,
    limits: HeadLimits,
    origins: &Origins,
) -> Result<Option<(Route<'a>, usize)>, Refused> {
    let Some(end) = find_end(bytes, scanned, limits.bytes_max)? else { return Ok(None) };
    let (head, _) = bytes.split_at_checked(end).ok_or(Refused::HeadTooLarge)?;
    let mut lines = vec![httparse::EMPTY_HEADER; limits.headers_max];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == end => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Refused::HeadTooLarge),
        _ => return Err(Refused::BadRequest("not an HTTP/1.1 request")),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Refused::BadRequest("not an HTTP/1.1 request"));
    };
    let headers = Headers::gather(request.headers)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !matches!(path, "/ws" | "/health/live" | "/health/ready") {
        return Err(Refused::NotFound);
    }
    if method != "GET" {
        return Err(Refused::MethodNotAllowed);
    }
    if version == 1 && headers.host.is_none() {
        return Err(Refused::BadRequest("Host is missing"));
    }
    let route = match path {
        "/health/live" => Route::HealthLive,
        "/health/ready" => Route::HealthReady,
        _ => Route::WebSocket(upgrade(&headers, query, version, origins)?),
    };
    Ok(Some((route, end)))
}

/// Length of the head with its empty line, once it is there. Checks each byte once.
fn find_end(bytes: &[u8], scanned: &mut usize, bytes_max: usize) -> Result<Option<usize>, Refused> {
    let is_method = |first: &u8| first.is_ascii_uppercase();
    if !bytes.first().is_none_or(is_method) {
        return Err(Refused::BadRequest("not an HTTP request"));
    }
    let mut previous = scanned.checked_sub(1).and_then(|before| bytes.get(before)).copied().unwrap_or(0);
    for (at, &byte) in bytes.iter().enumerate().skip(*scanned) {
        if at >= bytes_max {
            return Err(Refused::HeadTooLarge);
        }
        match (previous, byte) {
            (b'\r', b'\n') => {
                let end = at + 1;
                if bytes.get(..end).is_some_and(|head| head.ends_with(b"\r\n\r\n")) {
                    *scanned = at;
                    return Ok(Some(end));
                }
            }
            (b'\r', _) | (_, b'\n') => return Err(Refused::BadRequest("lines end in CR LF")),
            (_, b'\r' | b'\t') => {}
            (_, 0..=0x1f | 0x7f) => return Err(Refused::BadRequest("a control character in the head")),
            _ => {}
        }
        previous = byte;
    }
    *scanned = bytes.len();
    if bytes.len() >= bytes_max {
        return Err(Refused::HeadTooLarge);
    }
    Ok(None)
}

/// The headers that matter here, each at most once where once is the rule.
#[derive(Default)]
struct Headers<'a> {
    host: Option<&'a str>,
    upgrade: Option<&'a str>,
    connection: Vec<&'a str>,
    version: Option<&'a str>,
    key: Option<&'a str>,
    protocols: Vec<&'a str>,
    origin: Option<&'a [u8]>,
    authorization: Option<&'a str>,
    content_length: Option<&'a str>,
}

impl<'a> Headers<'a> {
    fn gather(lines: &[httparse::Header<'a>]) -> Result<Self, Refused> {
        let mut headers = Self::default();
        for line in lines {
            let is = |name: &str| line.name.eq_ignore_ascii_case(name);
            let text = || {
                let visible = line.value.iter().all(|byte| matches!(byte, b' '..=b'~'));
                let text = std::str::from_utf8(line.value).ok().filter(|_| visible);
                text.ok_or(Refused::BadRequest("a header value is not visible ASCII"))
            };
            if is("Host") {
                once(&mut headers.host, text()?)?;
            } else if is("Upgrade") {
                once(&mut headers.upgrade, text()?)?;
            } else if is("Connection") {
                headers.connection.push(text()?);
            } else if is("Sec-WebSocket-Version") {
                once(&mut headers.version, text()?)?;
            } else if is("Sec-WebSocket-Key") {
                once(&mut headers.key, text()?)?;
            } else if is("Sec-WebSocket-Protocol") {
                headers.protocols.push(text()?);
            } else if is("Origin") {
                once(&mut headers.origin, line.value)?;
            } else if is("Authorization") {
                once(&mut headers.authorization, text()?)?;
            } else if is("Content-Length") {
                once(&mut headers.content_length, text()?)?;
            } else if is("Transfer-Encoding") {
                return Err(Refused::BadRequest("a request here has no body"));
            }
        }
        if headers.content_length.is_some_and(|length| length != "0") {
            return Err(Refused::BadRequest("a request here has no body"));
        }
        if headers.host.is_some_and(|host| host.is_empty() || !host.bytes().all(is_host_byte)) {
            return Err(Refused::BadRequest("Host is not a host"));
        }
        Ok(headers)
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Refused> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Refused::BadRequest("a header is given twice")),
    }
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
}

/// The elements of a comma-separated list (RFC 9110 section 5.6.1); empty ones do not count.
fn elements(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(|element| element.trim_matches([' ', '\t'])).filter(|element| !element.is_empty())
}

fn upgrade<'a>(
    headers: &Headers<'a>,
    query: &'a str,
    version: u8,
    origins: &Origins,
) -> Result<UpgradeRequest<'a>, Refused> {
    let names = |list: &str, word: &str| elements(list).any(|element| element.eq_ignore_ascii_case(word));
    let wants_websocket = headers.upgrade.is_some_and(|list| names(list, "websocket"))
        && headers.connection.iter().any(|list| names(list, "upgrade"));
    if !wants_websocket || headers.version != Some("13") {
        return Err(Refused::UpgradeRequired);
    }
    if version != 1 {
        return Err(Refused::BadRequest("an upgrade needs HTTP/1.1"));
    }
    let key = headers.key.filter(|key| is_key(key));
    let key = key.ok_or(Refused::BadRequest("Sec-WebSocket-Key must be 16 bytes in base64"))?;
    if headers.origin.is_some_and(|origin| !origins.allows(origin)) {
        return Err(Refused::Forbidden);
    }
    let mut token = TokenOffer::Missing;
    if let Some(bearer) = headers.authorization.and_then(bearer) {
        offer(&mut token, Cow::Borrowed(bearer));
    }
    let subprotocol = negotiate(&headers.protocols, &mut token)?;
    let (device, batch) = read_query(query, &mut token)?;
    Ok(UpgradeRequest { accept: derive_accept_key(key.as_bytes()), token, subprotocol, device, batch })
}

/// 16 bytes in base64: 22 characters and the padding. Stray bits in the last one are let pass.
fn is_key(key: &str) -> bool {
    key.len() == 24
        && key.strip_suffix("==").is_some_and(|digits| {
            digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
        })
}

/// The token of an `Authorization: Bearer` header (RFC 6750 section 2.1); other schemes are not ours.
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ').unwrap_or((authorization, ""));
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_matches(' '))
}

fn offer<'a>(token: &mut TokenOffer<'a>, offered: Cow<'a, str>) {
    if token.add(Cow::Borrowed(&offered)) {
        *token = TokenOffer::One(offered);
    }
}

fn negotiate<'a>(lists: &[&'a str], token: &mut TokenOffer<'a>) -> Result<Subprotocol<'a>, Refused> {
    let mut subprotocol = Subprotocol::Unnamed;
    for offered in lists.iter().flat_map(|list| elements(list)) {
        if !offered.bytes().all(is_token_byte) {
            return Err(Refused::BadRequest("Sec-WebSocket-Protocol is not a list of tokens"));
        }
        if let Some(jwt) = offered.strip_prefix(BEARER_SUBPROTOCOL) {
            offer(token, Cow::Borrowed(jwt));
        } else if offered == SUBPROTOCOL {
            subprotocol = Subprotocol::V1;
        } else if offered.starts_with(SUBPROTOCOL_FAMILY) && subprotocol == Subprotocol::Unnamed {
            subprotocol = Subprotocol::Unsupported(offered);
        }
    }
    Ok(subprotocol)
}

/// RFC 9110 section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn read_query<'a>(query: &'a str, token: &mut TokenOffer<'a>) -> Result<(DeviceId, bool), Refused> {
    let mut device = None;
    let mut batch = None;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "device" => {
                let name = percent_decode(value)?;
                let parsed = DeviceId::parse(&name);
                let parsed = parsed.map_err(|_| Refused::BadRequest("device must be 1 to 64 of A-Z a-z 0-9 . _ -"))?;
                once(&mut device, parsed)?;
            }
            "batch" => match value {
                "0" | "1" => once(&mut batch, value == "1")?,
                _ => return Err(Refused::BadRequest("batch must be 0 or 1")),
            },
            "access_token" => offer(token, percent_decode(value)?),
            _ => {}
        }
    }
    let device = match device {
        Some(device) => device,
        None => DeviceId::parse("default").map_err(|_| Refused::BadRequest("device is missing"))?,
    };
    Ok((device, batch.unwrap_or(false)))
}

/// RFC 3986 section 2.1. A `+` stays one.
fn percent_decode(value: &str) -> Result<Cow<'_, str>, Refused> {
    const BAD: Refused = Refused::BadRequest("the query is not percent-encoded UTF-8");
    if !value.contains('%') {
        return Ok(Cow::Borrowed(value));
    }
    let hex = |digit: Option<u8>| digit.and_then(|digit| char::from(digit).to_digit(16)).ok_or(BAD);
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            // Two hexadecimal digits are at most 255.
            b'%' => decoded.push((hex(bytes.next())? * 16 + hex(bytes.next())?) as u8),
            _ => decoded.push(byte),
        }
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| BAD)
}
