//! Keys: from a secret, PEM or JWK set, each pinned to one algorithm; and the minting with a secret.

use std::fmt;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};

use crate::protocol::ids::{UnixMillis, UserId};

/// Shortest secret for HS256, bytes: as long as the hash (RFC 7518 section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;
/// Shortest RSA modulus, bytes: 2,048 bits (RFC 7518 section 3.3).
const RSA_BYTES_MIN: usize = 256;

/// Why keys cannot be used. One sentence, without key material.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyError(String);

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KeyError {}

fn refuse<T>(why: impl Into<String>) -> Result<T, KeyError> {
    Err(KeyError(why.into()))
}

/// One key, which decides the algorithm.
pub(super) struct Key {
    pub(super) kid: Option<Box<str>>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

impl Key {
    pub(super) fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(secret.len())?;
        Ok(Self { kid: None, algorithm: Algorithm::HS256, decoding: DecodingKey::from_secret(secret) })
    }

    pub(super) fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if pem.contains("PRIVATE KEY") {
            return refuse("this is a private key; the server needs the public one (BEGIN PUBLIC KEY)");
        }
        if !pem.contains("PUBLIC KEY") {
            return refuse("this is not a public key in PEM (BEGIN PUBLIC KEY)");
        }
        let bytes = pem.as_bytes();
        // The three readers look at the algorithm inside, so at most one of them succeeds, but for
        // the RSA one, which takes PKCS#1 as it is and is therefore asked last.
        if let Ok(decoding) = DecodingKey::from_ed_pem(bytes) {
            return Self::new(None, Algorithm::EdDSA, decoding);
        }
        if let Ok(decoding) = DecodingKey::from_ec_pem(bytes) {
            let algorithm = match decoding.try_get_as_bytes().map(<[u8]>::len) {
                Ok(97) => Algorithm::ES384,
                _ => Algorithm::ES256,
            };
            return Self::new(None, algorithm, decoding);
        }
        match DecodingKey::from_rsa_pem(bytes) {
            Ok(decoding) => Self::new(None, Algorithm::RS256, decoding),
            Err(_) => refuse("this is not an RSA, P-256, P-384 or Ed25519 public key in PEM"),
        }
    }

    /// Checks that the key is long enough, and of the form, for its algorithm.
    fn new(kid: Option<Box<str>>, algorithm: Algorithm, decoding: DecodingKey) -> Result<Self, KeyError> {
        use jsonwebtoken::DecodingKeyKind as Kind;
        let len = match decoding.kind() {
            Kind::SecretOrDer(bytes) => bytes.len(),
            Kind::RsaModulusExponent { n, .. } => n.iter().skip_while(|byte| **byte == 0).count(),
        };
        match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => check_secret(len)?,
            // The DER form is some bytes longer than the modulus in it.
            _ if algorithm.family() == jsonwebtoken::AlgorithmFamily::Rsa && len < RSA_BYTES_MIN => {
                return refuse("an RSA key has at least 2048 bits");
            }
            Algorithm::ES256 if len != 65 => return refuse("a P-256 key is an uncompressed point of 65 bytes"),
            Algorithm::ES384 if len != 97 => return refuse("a P-384 key is an uncompressed point of 97 bytes"),
            Algorithm::EdDSA if len != 32 => return refuse("an Ed25519 key has 32 bytes"),
            _ => {}
        }
        Ok(Self { kid, algorithm, decoding })
    }

    /// True when `name`, as in the `alg` of a token's header, is this key's algorithm.
    pub(super) fn is_algorithm(&self, name: &str) -> bool {
        name.parse::<Algorithm>().is_ok_and(|algorithm| algorithm == self.algorithm)
    }

    /// True when `signature` (base64url) is this key's over `message`.
    pub(super) fn verifies(&self, message: &str, signature: &str) -> bool {
        jsonwebtoken::crypto::verify(signature, message.as_bytes(), &self.decoding, self.algorithm).unwrap_or(false)
    }
}

fn check_secret(len: usize) -> Result<(), KeyError> {
    if len < SECRET_BYTES_MIN {
        return refuse(format!("a secret has at least {SECRET_BYTES_MIN} bytes, this one has {len}"));
    }
    Ok(())
}

/// The usable keys of a JWK set. Keys of unknown kinds and those not for signatures are passed over
/// (RFC 7517 section 5); a weak or broken one is an error.
pub(super) fn from_jwks(json: &str) -> Result<Vec<Key>, KeyError> {
    let Ok(set) = serde_json::from_str::<JwkSet>(json) else {
        return refuse("this is not a JWK set (RFC 7517): an object with an array keys");
    };
    let mut keys: Vec<Key> = Vec::new();
    for jwk in &set.keys {
        let Some(key) = from_jwk(jwk)? else { continue };
        if keys.iter().any(|other| other.kid == key.kid && other.algorithm == key.algorithm) {
            return refuse("two keys of the set have the same kid and algorithm");
        }
        keys.push(key);
    }
    if keys.is_empty() {
        return refuse("the JWK set has no key that signs tokens");
    }
    if keys.len() > 1 && keys.iter().any(|key| key.kid.is_none()) {
        return refuse("in a JWK set of several keys, each needs a kid");
    }
    Ok(keys)
}

fn from_jwk(jwk: &Jwk) -> Result<Option<Key>, KeyError> {
    let common = &jwk.common;
    let is_for_signatures = !matches!(&common.public_key_use, Some(usage) if *usage != PublicKeyUse::Signature)
        && !matches!(&common.key_operations, Some(list) if !list.contains(&KeyOperations::Verify));
    // What the kind of key can do; the first is what it does when it does not say.
    let able: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => &[Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => &[Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
        AlgorithmParameters::OctetKey(_) => &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512],
        _ => &[],
    };
    let (Some(default), true) = (able.first(), is_for_signatures) else { return Ok(None) };
    let algorithm = match common.key_algorithm {
        None => *default,
        Some(KeyAlgorithm::UNKNOWN_ALGORITHM) => return Ok(None),
        Some(named) => match Algorithm::try_from(named) {
            Ok(algorithm) if able.contains(&algorithm) => algorithm,
            Ok(_) => return refuse("a key of the set names an algorithm that is not of its kind"),
            Err(_) => return Ok(None),
        },
    };
    match DecodingKey::from_jwk(jwk) {
        Ok(decoding) => Key::new(common.key_id.as_deref().map(Into::into), algorithm, decoding).map(Some),
        Err(_) => refuse("a key of the set is not base64url"),
    }
}

/// base64url without padding in its one canonical form (RFC 4648 section 5, RFC 7515 section 2).
pub(super) fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut held, mut bits) = (0u32, 0u32);
    for byte in text.bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(digit);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            // The low eight bits are meant.
            bytes.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    // Six bits left over are a digit too many, and others than zero mean a second spelling.
    (bits < 6 && held == 0).then_some(bytes)
}

/// What a token of our own says.
#[derive(Debug, Clone)]
pub struct NewToken<'a> {
    /// `sub`
    pub user: &'a UserId,
    /// `iat`; cut to the second.
    pub issued_at: UnixMillis,
    /// `exp`; cut to the second.
    pub expires_at: UnixMillis,
    /// `jti`
    pub jti: Option<&'a str>,
    /// `admin`
    pub admin: bool,
    /// `rooms`: pattern and "may write".
    pub rooms: Option<&'a [(String, bool)]>,
    /// `iss`
    pub issuer: Option<&'a str>,
    /// `aud`
    pub audience: Option<&'a str>,
}

impl<'a> NewToken<'a> {
    /// A token for a user, without special rights.
    pub const fn new(user: &'a UserId, issued_at: UnixMillis, expires_at: UnixMillis) -> Self {
        Self { user, issued_at, expires_at, jti: None, admin: false, rooms: None, issuer: None, audience: None }
    }
}

/// Signs a token with HS256.
///
/// # Errors
/// When the secret has less than [`SECRET_BYTES_MIN`] bytes.
pub fn mint(secret: &[u8], token: &NewToken<'_>) -> Result<String, KeyError> {
    check_secret(secret.len())?;
    let mut claims = serde_json::Map::new();
    claims.insert("sub".into(), token.user.as_str().into());
    claims.insert("iat".into(), (token.issued_at / 1_000).into());
    claims.insert("exp".into(), (token.expires_at / 1_000).into());
    for (name, value) in [("jti", token.jti), ("iss", token.issuer), ("aud", token.audience)] {
        if let Some(value) = value {
            claims.insert(name.into(), value.into());
        }
    }
    if token.admin {
        claims.insert("admin".into(), true.into());
    }
    if let Some(rooms) = token.rooms {
        let rights =
            rooms.iter().map(|(pattern, may_write)| (pattern.clone(), if *may_write { "rw" } else { "r" }.into()));
        claims.insert("rooms".into(), serde_json::Value::Object(rights.collect()));
    }
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))
        .or_else(|_| refuse("the token cannot be signed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_has_one_spelling() {
        for (text, bytes) in
            [("", &b""[..]), ("Zg", b"f"), ("Zm8", b"fo"), ("Zm9v", b"foo"), ("-_-_", &[0xfb, 0xff, 0xbf])]
        {
            assert_eq!(base64url(text).as_deref(), Some(bytes), "{text}");
        }
        for bad in ["Z", "Zg==", "Zh", "Zm9", "Zm9vA", "Zm 9v", "Zm9v\n", "+/+/", "Zm9v="] {
            assert_eq!(base64url(bad), None, "{bad}");
        }
    }
}
