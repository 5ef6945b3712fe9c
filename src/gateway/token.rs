//! JWTs (RFC 7519, by the practice of RFC 8725): text to [`Claims`], and the minting of our own.
//!
//! Rules: the key decides the algorithm, never the token. `none`, `crit`, a name given twice, an
//! `alg` other than the key's, and base64 in any but its one strict form are refused. Claims are
//! looked at only under a good signature. Time is a parameter. `jku`, `x5u`, `jwk` and the like are
//! never followed.
//!
//! It refuses to know who is revoked (the engine does), and no error holds anything of the token.

mod keys;

use std::fmt;

use crate::engine::event::Claims;
use crate::protocol::error::{CloseCode, ErrorCode, Refusal};
use crate::protocol::ids::{RoomName, UnixMillis, UserId};
use crate::protocol::parse::{Document, Object, TOKEN_BYTES_MAX, Value};

use keys::{Key, base64url};
pub use keys::{KeyError, NewToken, SECRET_BYTES_MIN, mint};

/// Patterns in a `rooms` claim.
pub const ROOM_PATTERNS_MAX: usize = 256;
/// Bytes of a `jti`.
pub const JTI_BYTES_MAX: usize = 128;
/// The end of the year 9999: later times are cut to it.
const TIME_MAX_MS: f64 = 253_402_300_799_000.0;

/// What a token must say beside being signed and in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// `iss` must be this one.
    pub issuer: Option<String>,
    /// `aud` must name one of these. When empty, a token with an `aud` is refused, since it is meant
    /// for somebody else (RFC 7519 section 4.1.3).
    pub audience: Vec<String>,
    /// How far clocks may be apart, ms: added to `exp`, taken from `nbf` and `iat`.
    pub leeway_ms: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self { issuer: None, audience: Vec::new(), leeway_ms: 5_000 }
    }
}

/// Why a token is refused. Names the part, never what it held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// Not three parts of strict base64url with JSON objects in them.
    Malformed(&'static str),
    /// The header asks for what is not done here.
    Header(&'static str),
    /// No key of that `kid`, or none without.
    UnknownKey,
    /// `alg` is not that of the key.
    Algorithm,
    /// The signature is not the key's.
    Signature,
    /// A claim is missing or not what it must be.
    Claim(&'static str, &'static str),
    /// `exp` is past.
    Expired,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => write!(f, "the token is malformed: {why}"),
            Self::Header(why) => write!(f, "the token's header is refused: {why}"),
            Self::UnknownKey => f.write_str("no key here signs such tokens"),
            Self::Algorithm => f.write_str("the token's algorithm is not that of the key"),
            Self::Signature => f.write_str("the token's signature is wrong"),
            Self::Claim(claim, why) => write!(f, "the token's claim {claim} {why}"),
            Self::Expired => f.write_str("the token has expired"),
        }
    }
}

impl std::error::Error for TokenError {}

impl TokenError {
    /// The answer to `auth:refresh`: 109 for an expired token, 101 for every other.
    pub fn refusal(self) -> Refusal {
        let code = if self == Self::Expired { ErrorCode::TokenExpired } else { ErrorCode::Unauthorized };
        Refusal::new(code, self.to_string())
    }

    /// How a connection that came with such a token is closed: 4001, with the text as reason.
    pub const fn close_code(self) -> CloseCode {
        CloseCode::InvalidToken
    }
}

/// Checks tokens against one set of keys and rules. Cheap to share, never changed.
pub struct Verifier {
    keys: Vec<Key>,
    rules: Rules,
}

impl Verifier {
    /// Tokens signed with HS256 by a shared secret.
    ///
    /// # Errors
    /// When the secret has less than [`SECRET_BYTES_MIN`] bytes (RFC 7518 section 3.2).
    pub fn from_secret(secret: &[u8], rules: Rules) -> Result<Self, KeyError> {
        Ok(Self { keys: vec![Key::from_secret(secret)?], rules })
    }

    /// Tokens signed by the private half of a public key in PEM: RSA (RS256, at least 2,048 bits),
    /// P-256 (ES256), P-384 (ES384) or Ed25519 (EdDSA).
    ///
    /// # Errors
    /// When it is no such key, or a private one.
    pub fn from_pem(pem: &str, rules: Rules) -> Result<Self, KeyError> {
        Ok(Self { keys: vec![Key::from_pem(pem)?], rules })
    }

    /// Tokens signed by a key of a JWK set (RFC 7517), chosen by `kid`; a token without `kid` is
    /// taken only when there is one key.
    ///
    /// # Errors
    /// When it is no such set, has no usable key, or one that is too weak.
    pub fn from_jwks(json: &str, rules: Rules) -> Result<Self, KeyError> {
        Ok(Self { keys: keys::from_jwks(json)?, rules })
    }

    /// Checks a token and reads its claims.
    ///
    /// `expires_at` is the token's `exp` without the leeway.
    ///
    /// # Errors
    /// [`TokenError`], whatever the text; never panics.
    pub fn verify(&self, jwt: &str, now: UnixMillis) -> Result<Claims, TokenError> {
        const PARTS: TokenError = TokenError::Malformed("it has not three parts");
        if jwt.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed("it is longer than 8 KiB"));
        }
        let (message, signature) = jwt.rsplit_once('.').ok_or(PARTS)?;
        let (header, payload) = message.split_once('.').ok_or(PARTS)?;
        if payload.contains('.') {
            return Err(PARTS);
        }
        let mut document = Document::new();
        let not_header = "the header is not a JSON object in base64url";
        let key = read_object(&mut document, header, not_header, |header| self.key(header))??;
        if !key.verifies(message, signature) {
            return Err(TokenError::Signature);
        }
        let not_payload = "the payload is not a JSON object in base64url";
        read_object(&mut document, payload, not_payload, |claims| self.claims(claims, now))?
    }

    fn key(&self, header: Object<'_, '_>) -> Result<&Key, TokenError> {
        if header.find("crit").is_some() {
            return Err(TokenError::Header("crit names extensions and none is known here"));
        }
        if let Some(typ) = header.find("typ") {
            let typ = typ.text().ok_or(TokenError::Header("typ must be a string"))?;
            let typ = typ.strip_prefix("application/").unwrap_or(typ);
            if !["JWT", "at+jwt"].iter().any(|known| known.eq_ignore_ascii_case(typ)) {
                return Err(TokenError::Header("typ must be JWT or at+jwt"));
            }
        }
        let algorithm = header.find("alg").and_then(Value::text).ok_or(TokenError::Header("alg must be a string"))?;
        let kid = match header.find("kid") {
            Some(kid) => Some(kid.text().ok_or(TokenError::Header("kid must be a string"))?),
            None => None,
        };
        let is_named = |key: &&Key| match (&key.kid, kid) {
            (Some(own), Some(kid)) => **own == *kid,
            // A lone key without a name of its own answers to every name, a lone one with a name
            // also to none.
            (None, _) | (Some(_), None) => self.keys.len() == 1,
        };
        let mut named = self.keys.iter().filter(is_named).peekable();
        named.peek().ok_or(TokenError::UnknownKey)?;
        named.find(|key| key.is_algorithm(algorithm)).ok_or(TokenError::Algorithm)
    }

    fn claims(&self, claims: Object<'_, '_>, now: UnixMillis) -> Result<Claims, TokenError> {
        let leeway_ms = u64::from(self.rules.leeway_ms);
        let expires_at = time(claims, "exp")?.ok_or(TokenError::Claim("exp", "is missing"))?;
        let not_before = time(claims, "nbf")?;
        let issued_at = time(claims, "iat")?;
        if now >= expires_at.saturating_add(leeway_ms) {
            return Err(TokenError::Expired);
        }
        let is_future = |time: UnixMillis| time > now.saturating_add(leeway_ms);
        if not_before.is_some_and(is_future) {
            return Err(TokenError::Claim("nbf", "is in the future"));
        }
        if issued_at.is_some_and(is_future) {
            return Err(TokenError::Claim("iat", "is in the future"));
        }
        self.check_issuer(claims)?;
        self.check_audience(claims)?;
        let sub = text(claims, "sub")?.ok_or(TokenError::Claim("sub", "is missing"))?;
        let user = UserId::parse(sub).map_err(|_| TokenError::Claim("sub", "is not a user id"))?;
        let jti = text(claims, "jti")?;
        if jti.is_some_and(|jti| jti.is_empty() || jti.len() > JTI_BYTES_MAX) {
            return Err(TokenError::Claim("jti", "must have 1 to 128 bytes"));
        }
        let admin = match claims.find("admin") {
            Some(admin) => admin.bool().ok_or(TokenError::Claim("admin", "must be true or false"))?,
            None => false,
        };
        let rooms = match claims.find("rooms") {
            Some(rooms) => Some(patterns(rooms)?.into()),
            None => None,
        };
        let issued_at = issued_at.map(|time| time / 1_000);
        Ok(Claims { user, expires_at, issued_at, jti: jti.map(Into::into), admin, rooms })
    }

    fn check_issuer(&self, claims: Object<'_, '_>) -> Result<(), TokenError> {
        match (text(claims, "iss")?, &self.rules.issuer) {
            (_, None) => Ok(()),
            (None, Some(_)) => Err(TokenError::Claim("iss", "is missing")),
            (Some(issuer), Some(wanted)) if issuer == wanted => Ok(()),
            (Some(_), Some(_)) => Err(TokenError::Claim("iss", "is not the one configured")),
        }
    }

    fn check_audience(&self, claims: Object<'_, '_>) -> Result<(), TokenError> {
        const TYPE: TokenError = TokenError::Claim("aud", "must be a string or an array of strings");
        let Some(audience) = claims.find("aud") else {
            return match self.rules.audience.is_empty() {
                true => Ok(()),
                false => Err(TokenError::Claim("aud", "is missing")),
            };
        };
        let is_ours = |name: &str| self.rules.audience.iter().any(|wanted| wanted == name);
        let mut found = false;
        if let Some(name) = audience.text() {
            found = is_ours(name);
        } else {
            let (_, names) = audience.array().ok_or(TYPE)?;
            for name in names {
                found |= is_ours(name.text().ok_or(TYPE)?);
            }
        }
        match (found, self.rules.audience.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => Err(TokenError::Claim("aud", "is set, but no audience is configured here")),
            (false, false) => Err(TokenError::Claim("aud", "does not name this server")),
        }
    }
}

/// Decodes one part and hands its object to `read`.
fn read_object<T>(
    document: &mut Document,
    part: &str,
    why: &'static str,
    read: impl FnOnce(Object<'_, '_>) -> T,
) -> Result<T, TokenError> {
    let json = base64url(part).ok_or(TokenError::Malformed(why))?;
    let outcome = document.read(&json, |root| {
        root.unique_names().map_err(|_| TokenError::Malformed("a name appears twice in one object"))?;
        Ok(read(root.object().ok_or(TokenError::Malformed(why))?))
    });
    outcome.unwrap_or(Err(TokenError::Malformed(why)))
}

fn text<'s>(claims: Object<'_, 's>, claim: &'static str) -> Result<Option<&'s str>, TokenError> {
    match claims.find(claim) {
        Some(value) => value.text().map(Some).ok_or(TokenError::Claim(claim, "must be a string")),
        None => Ok(None),
    }
}

/// A NumericDate (seconds, perhaps with a fraction) in milliseconds; before 1970 is 1970.
fn time(claims: Object<'_, '_>, claim: &'static str) -> Result<Option<UnixMillis>, TokenError> {
    let Some(value) = claims.find(claim) else { return Ok(None) };
    let seconds = value.number().ok_or(TokenError::Claim(claim, "must be a number"))?;
    // In range after the clamp, whatever came.
    Ok(Some((seconds * 1_000.0).clamp(0.0, TIME_MAX_MS) as u64))
}

/// The `rooms` claim: pattern to "may write".
fn patterns(rooms: Value<'_, '_>) -> Result<Vec<(Box<str>, bool)>, TokenError> {
    let refuse = |why| TokenError::Claim("rooms", why);
    let object = rooms.object().ok_or(refuse("must be an object"))?;
    let mut patterns = Vec::new();
    for (pattern, right) in object.fields() {
        if patterns.len() == ROOM_PATTERNS_MAX {
            return Err(refuse("has more than 256 patterns"));
        }
        if !is_pattern(pattern) {
            return Err(refuse("has a pattern that is neither a room nor the start of one and *"));
        }
        let may_write = match right.text() {
            Some("r") => false,
            Some("rw") => true,
            _ => return Err(refuse("gives a right other than r or rw")),
        };
        patterns.push((pattern.into(), may_write));
    }
    Ok(patterns)
}

/// A room's name, or the beginning of one and `*`.
fn is_pattern(pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        // What a name may hold inside it may not at its end: look at it with an end.
        Some(prefix) => prefix.is_empty() || RoomName::is_valid(&format!("{prefix}x")),
        None => RoomName::is_valid(pattern),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const NOW: UnixMillis = 1_800_000_000_000;

    #[test]
    fn a_minted_token_is_good_until_it_expires() {
        let verifier = Verifier::from_secret(SECRET, Rules::default()).unwrap();
        let alice = UserId::parse("alice").unwrap();
        let rooms = [("team/*".to_owned(), true), ("general".to_owned(), false)];
        let token =
            NewToken { jti: Some("t1"), admin: true, rooms: Some(&rooms), ..NewToken::new(&alice, NOW, NOW + 60_000) };
        let jwt = mint(SECRET, &token).unwrap();
        let claims = verifier.verify(&jwt, NOW).unwrap();
        assert_eq!(
            (claims.user.as_str(), claims.expires_at, claims.issued_at),
            ("alice", NOW + 60_000, Some(NOW / 1000))
        );
        assert_eq!((claims.jti.as_deref(), claims.admin), (Some("t1"), true));
        assert_eq!(&claims.rooms.unwrap()[..], [("general".into(), false), ("team/*".into(), true)]);
        assert!(verifier.verify(&jwt, NOW + 64_999).is_ok());
        assert_eq!(verifier.verify(&jwt, NOW + 65_000), Err(TokenError::Expired));
        assert_eq!(TokenError::Expired.refusal().code, ErrorCode::TokenExpired);
    }

    #[test]
    fn patterns_are_names_or_starts_of_names() {
        for good in ["*", "a", "a*", "a b*", "a *", "größe/*"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in ["", "**", "*a", "a*b", " a*", "a ", "a\n*", &format!("{}*", "x".repeat(128))] {
            assert!(!is_pattern(bad), "{bad:?}");
        }
    }
}
