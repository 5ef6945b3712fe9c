//! Tokens that must not pass, and the reason each is refused for; then the few that must.
//!
//! Signatures are real: what is tested is that a good signature does not excuse the rest, and that
//! nothing but the right key makes a good signature.

#![allow(clippy::unwrap_used)]

use antiphon::engine::event::Claims;
use antiphon::gateway::token::{KeyError, Rules, TokenError, Verifier};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

const SECRET: &[u8] = b"an HS256 secret of thirty-two by";
/// Seconds.
const NOW: u64 = 1_800_000_000;

const RSA: &str = include_str!("keys/rsa.pem");
const RSA_PUB: &str = include_str!("keys/rsa.pub.pem");
const P256: &str = include_str!("keys/p256.pem");
const P256_PUB: &str = include_str!("keys/p256.pub.pem");
const P384: &str = include_str!("keys/p384.pem");
const P384_PUB: &str = include_str!("keys/p384.pub.pem");
const ED: &str = include_str!("keys/ed25519.pem");
const ED_PUB: &str = include_str!("keys/ed25519.pub.pem");

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digit = |six: u32| char::from(DIGITS[six as usize & 63]);
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let held = chunk.iter().fold(0u32, |held, byte| held << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        (0..=chunk.len()).for_each(|at| text.push(digit(held >> (18 - 6 * at))));
    }
    text
}

fn signed(header: &str, payload: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", base64url(header.as_bytes()), base64url(payload.as_bytes()));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn hs256(header: &str, payload: &str) -> String {
    signed(header, payload, &EncodingKey::from_secret(SECRET), Algorithm::HS256)
}

const HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;

fn payload() -> Value {
    json!({"sub": "alice", "exp": NOW + 60, "iat": NOW, "nbf": NOW, "jti": "t-1"})
}

/// A good payload whose claim is replaced by a JSON text, or taken away.
fn payload_with(claim: &str, value: Option<&str>) -> String {
    let mut fields: Vec<String> = Vec::new();
    for (name, good) in payload().as_object().unwrap() {
        if name != claim {
            fields.push(format!("{name:?}:{good}"));
        }
    }
    fields.extend(value.map(|value| format!("{claim:?}:{value}")));
    format!("{{{}}}", fields.join(","))
}

fn verify_at(verifier: &Verifier, jwt: &str, now_s: u64) -> Result<Claims, TokenError> {
    verifier.verify(jwt, now_s * 1_000)
}

fn verifier() -> Verifier {
    Verifier::from_secret(SECRET, Rules::default()).unwrap()
}

fn error(jwt: &str) -> TokenError {
    match verify_at(&verifier(), jwt, NOW) {
        Ok(claims) => panic!("accepted {jwt} as {claims:?}"),
        Err(error) => error,
    }
}

#[test]
fn claims_that_are_missing_wrong_or_out_of_time() {
    let missing = "is missing";
    let string = "must be a string";
    let number = "must be a number";
    let user = "is not a user id";
    let long = format!("\"{}\"", "x".repeat(65));
    let long_jti = format!("\"{}\"", "x".repeat(129));
    let rows: &[(&str, Option<&str>, &str)] = &[
        ("sub", None, missing),
        ("sub", Some("null"), string),
        ("sub", Some("1"), string),
        ("sub", Some("true"), string),
        ("sub", Some("[\"alice\"]"), string),
        ("sub", Some("{\"a\":1}"), string),
        ("sub", Some("\"\""), user),
        ("sub", Some("\" alice\""), user),
        ("sub", Some("\"alice \""), user),
        ("sub", Some("\"al ice\""), user),
        ("sub", Some("\"al/ice\""), user),
        ("sub", Some("\"alice\\u0000\""), user),
        ("sub", Some("\"alice\\n\""), user),
        ("sub", Some("\"\\u202ealice\""), user),
        ("sub", Some("\"\\u0430lice\""), user),
        ("sub", Some(&long), user),
        ("exp", None, missing),
        ("exp", Some("null"), number),
        ("exp", Some("true"), number),
        ("exp", Some("\"1800000060\""), number),
        ("exp", Some("[1800000060]"), number),
        ("exp", Some("{}"), number),
        ("exp", Some("\"\""), number),
        ("nbf", Some("null"), number),
        ("nbf", Some("\"0\""), number),
        ("nbf", Some("false"), number),
        ("nbf", Some("[]"), number),
        ("nbf", Some("1800000006"), "is in the future"),
        ("nbf", Some("1800000005.5"), "is in the future"),
        ("nbf", Some("9999999999"), "is in the future"),
        ("nbf", Some("1e300"), "is in the future"),
        ("iat", Some("null"), number),
        ("iat", Some("\"0\""), number),
        ("iat", Some("{}"), number),
        ("iat", Some("1800000006"), "is in the future"),
        ("iat", Some("1e18"), "is in the future"),
        // Milliseconds where seconds belong.
        ("iat", Some("1800000000000"), "is in the future"),
        ("jti", Some("null"), string),
        ("jti", Some("1"), string),
        ("jti", Some("[]"), string),
        ("jti", Some("\"\""), "must have 1 to 128 bytes"),
        ("jti", Some(&long_jti), "must have 1 to 128 bytes"),
        ("iss", Some("null"), string),
        ("iss", Some("1"), string),
        ("iss", Some("[\"a\"]"), string),
        ("aud", Some("\"antiphon\""), "is set, but no audience is configured here"),
        ("aud", Some("[]"), "is set, but no audience is configured here"),
        ("aud", Some("null"), "must be a string or an array of strings"),
        ("aud", Some("1"), "must be a string or an array of strings"),
        ("aud", Some("[1]"), "must be a string or an array of strings"),
        ("aud", Some("{}"), "must be a string or an array of strings"),
        ("admin", Some("null"), "must be true or false"),
        ("admin", Some("1"), "must be true or false"),
        ("admin", Some("\"true\""), "must be true or false"),
        ("admin", Some("[]"), "must be true or false"),
        ("admin", Some("{}"), "must be true or false"),
        ("rooms", Some("null"), "must be an object"),
        ("rooms", Some("\"*\""), "must be an object"),
        ("rooms", Some("[\"general\"]"), "must be an object"),
        ("rooms", Some("true"), "must be an object"),
        ("rooms", Some(r#"{"a":null}"#), "gives a right other than r or rw"),
        ("rooms", Some(r#"{"a":true}"#), "gives a right other than r or rw"),
        ("rooms", Some(r#"{"a":"w"}"#), "gives a right other than r or rw"),
        ("rooms", Some(r#"{"a":"RW"}"#), "gives a right other than r or rw"),
        ("rooms", Some(r#"{"a":""}"#), "gives a right other than r or rw"),
        ("rooms", Some(r#"{"a":["r"]}"#), "gives a right other than r or rw"),
        ("rooms", Some(r#"{"":"r"}"#), "has a pattern that is neither a room nor the start of one and *"),
        ("rooms", Some(r#"{"*a":"r"}"#), "has a pattern that is neither a room nor the start of one and *"),
        ("rooms", Some(r#"{"a*b":"r"}"#), "has a pattern that is neither a room nor the start of one and *"),
        ("rooms", Some(r#"{"a**":"r"}"#), "has a pattern that is neither a room nor the start of one and *"),
        ("rooms", Some(r#"{" a":"r"}"#), "has a pattern that is neither a room nor the start of one and *"),
        ("rooms", Some(r#"{"a\u0000":"r"}"#), "has a pattern that is neither a room nor the start of one and *"),
        ("rooms", Some(r#"{"a\u2028*":"r"}"#), "has a pattern that is neither a room nor the start of one and *"),
        ("rooms", Some(r#"{"ok":"rw","a\n":"r"}"#), "has a pattern that is neither a room nor the start of one and *"),
    ];
    for (claim, value, why) in rows {
        let got = error(&hs256(HEADER, &payload_with(claim, *value)));
        match got {
            TokenError::Claim(named, got) => assert_eq!((named, got), (*claim, *why), "{value:?}"),
            other => panic!("{claim} {value:?}: {other:?}"),
        }
    }
    let many: Vec<String> = (0..257).map(|n| format!("\"r{n}\":\"r\"")).collect();
    let many = format!("{{{}}}", many.join(","));
    let got = error(&hs256(HEADER, &payload_with("rooms", Some(&many))));
    assert_eq!(got, TokenError::Claim("rooms", "has more than 256 patterns"));
}

#[test]
fn times_that_are_past() {
    for exp in ["1799999995", "1799999994.9", "1799999000", "0", "-1", "-1e300", "1e-300", "1.8e9e", "1799999995.0"] {
        let jwt = hs256(HEADER, &payload_with("exp", Some(exp)));
        let expected = if exp.ends_with('e') {
            TokenError::Malformed("the payload is not a JSON object in base64url")
        } else {
            TokenError::Expired
        };
        assert_eq!(error(&jwt), expected, "{exp}");
    }
    // Expired, whatever else is wrong with the times.
    let both = hs256(HEADER, r#"{"sub":"alice","exp":1,"nbf":9999999999}"#);
    assert_eq!(error(&both), TokenError::Expired);
}

#[test]
fn headers_that_are_refused() {
    let body = payload().to_string();
    let alg = TokenError::Header("alg must be a string");
    let typ = TokenError::Header("typ must be a string");
    let other_typ = TokenError::Header("typ must be JWT or at+jwt");
    let crit = TokenError::Header("crit names extensions and none is known here");
    let kid = TokenError::Header("kid must be a string");
    let not_json = TokenError::Malformed("the header is not a JSON object in base64url");
    let twice = TokenError::Malformed("a name appears twice in one object");
    let rows = [
        (r#"{}"#, alg),
        (r#"{"typ":"JWT"}"#, alg),
        (r#"{"alg":null}"#, alg),
        (r#"{"alg":256}"#, alg),
        (r#"{"alg":["HS256"]}"#, alg),
        (r#"{"ALG":"HS256"}"#, alg),
        (r#"{"alg":""}"#, TokenError::Algorithm),
        (r#"{"alg":"none"}"#, TokenError::Algorithm),
        (r#"{"alg":"None"}"#, TokenError::Algorithm),
        (r#"{"alg":"NONE"}"#, TokenError::Algorithm),
        (r#"{"alg":"nOnE"}"#, TokenError::Algorithm),
        (r#"{"alg":"hs256"}"#, TokenError::Algorithm),
        (r#"{"alg":"HS256 "}"#, TokenError::Algorithm),
        (r#"{"alg":"HS384"}"#, TokenError::Algorithm),
        (r#"{"alg":"HS512"}"#, TokenError::Algorithm),
        (r#"{"alg":"RS256"}"#, TokenError::Algorithm),
        (r#"{"alg":"ES256"}"#, TokenError::Algorithm),
        (r#"{"alg":"EdDSA"}"#, TokenError::Algorithm),
        (r#"{"alg":"PS256"}"#, TokenError::Algorithm),
        (r#"{"alg":"HS256","typ":1}"#, typ),
        (r#"{"alg":"HS256","typ":null}"#, typ),
        (r#"{"alg":"HS256","typ":""}"#, other_typ),
        (r#"{"alg":"HS256","typ":"JWE"}"#, other_typ),
        (r#"{"alg":"HS256","typ":"dpop+jwt"}"#, other_typ),
        (r#"{"alg":"HS256","typ":"application/application/jwt"}"#, other_typ),
        (r#"{"alg":"HS256","crit":["exp"]}"#, crit),
        (r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, crit),
        (r#"{"alg":"HS256","crit":[]}"#, crit),
        (r#"{"alg":"HS256","crit":null}"#, crit),
        (r#"{"alg":"HS256","kid":1}"#, kid),
        (r#"{"alg":"HS256","kid":null}"#, kid),
        (r#"{"alg":"HS256","alg":"HS256"}"#, twice),
        (r#"{"alg":"none","alg":"HS256"}"#, twice),
        (r#"{"alg":"HS256","x":{"y":1,"y":1}}"#, twice),
        ("", not_json),
        ("null", not_json),
        ("[]", not_json),
        (r#""HS256""#, not_json),
        (r#"{"alg":"HS256""#, not_json),
        (r#"{"alg":"HS256"}x"#, not_json),
        ("\u{feff}{\"alg\":\"HS256\"}", not_json),
    ];
    for (header, expected) in rows {
        assert_eq!(error(&hs256(header, &body)), expected, "{header}");
    }
    let deep = format!(r#"{{"alg":"HS256","x":{}{}}}"#, "[".repeat(500), "]".repeat(500));
    assert_eq!(error(&hs256(&deep, &body)), not_json);
}

#[test]
fn payloads_that_are_no_claims() {
    let not_json = TokenError::Malformed("the payload is not a JSON object in base64url");
    let twice = TokenError::Malformed("a name appears twice in one object");
    let rows = [
        ("", not_json),
        ("null", not_json),
        ("[]", not_json),
        ("1", not_json),
        ("\"alice\"", not_json),
        ("{", not_json),
        ("{}{}", not_json),
        (r#"{"sub":"alice","exp":NaN}"#, not_json),
        (r#"{"sub":"alice","exp":1e999}"#, not_json),
        (r#"{"sub":"alice","exp":99999999999999999999}"#, not_json),
        (r#"{"sub":"\ud800","exp":1800000060}"#, not_json),
        (r#"{"sub":"alice","sub":"bob","exp":1800000060}"#, twice),
        (r#"{"sub":"alice","exp":1800000060,"exp":9999999999}"#, twice),
        (r#"{"sub":"alice","exp":1800000060,"admin":false,"\u0061dmin":true}"#, twice),
        (r#"{"sub":"alice","exp":1800000060,"rooms":{"a":"r","a":"rw"}}"#, twice),
    ];
    for (body, expected) in rows {
        assert_eq!(error(&hs256(HEADER, body)), expected, "{body}");
    }
    let latin1 = {
        let message =
            format!("{}.{}", base64url(HEADER.as_bytes()), base64url(b"{\"sub\":\"al\xffice\",\"exp\":1800000060}"));
        let key = EncodingKey::from_secret(SECRET);
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    };
    assert_eq!(error(&latin1), not_json);
}

#[test]
fn texts_that_are_no_token() {
    let good = hs256(HEADER, &payload().to_string());
    let [header, body, signature]: [&str; 3] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let with_signature = |signature: &str| format!("{header}.{body}.{signature}");
    let parts = TokenError::Malformed("it has not three parts");
    let bad_header = TokenError::Malformed("the header is not a JSON object in base64url");
    let signature_of = |text: &str| {
        jsonwebtoken::crypto::sign(text.as_bytes(), &EncodingKey::from_secret(SECRET), Algorithm::HS256).unwrap()
    };
    let flipped: String = signature.chars().rev().collect();
    let rows = [
        (String::new(), parts),
        (".".into(), parts),
        ("a".into(), parts),
        ("a.b".into(), parts),
        ("a.b.c.d".into(), parts),
        ("a.b.c.d.e".into(), parts),
        ("..".into(), bad_header),
        ("...".into(), parts),
        (format!("{good}."), parts),
        (format!(".{good}"), parts),
        (format!("{header}..{body}.{signature}"), parts),
        (format!("{header}.{body}"), parts),
        (with_signature(""), TokenError::Signature),
        (with_signature("A"), TokenError::Signature),
        (with_signature(&flipped), TokenError::Signature),
        (with_signature(&signature[..signature.len() - 1]), TokenError::Signature),
        (with_signature(&signature[1..]), TokenError::Signature),
        (with_signature(&format!("{signature}A")), TokenError::Signature),
        (with_signature(&format!("{signature}=")), TokenError::Signature),
        (with_signature(&format!("{signature} ")), TokenError::Signature),
        (with_signature(&format!("{signature}\n")), TokenError::Signature),
        (with_signature(&format!(" {signature}")), TokenError::Signature),
        (with_signature(&format!("{signature}\0")), TokenError::Signature),
        (format!(" {good}"), bad_header),
        (format!("\u{feff}{good}"), bad_header),
        (format!("Bearer {good}"), bad_header),
        (format!("{header}=.{body}.{signature}"), bad_header),
        (format!("{header}\n.{body}.{signature}"), bad_header),
        (format!(".{body}.{signature}"), bad_header),
        (format!("{header}..{signature}"), TokenError::Signature),
        (format!("{header}.{body}{body}.{signature}"), TokenError::Signature),
        (format!("{body}.{header}.{signature}"), TokenError::Header("alg must be a string")),
        (format!("{header}+/.{body}.{signature}"), bad_header),
        ("eyJhbGciOiJIUzI1NiJ9.e30.😀".into(), TokenError::Signature),
        ("x".repeat(8 * 1024 + 1), TokenError::Malformed("it is longer than 8 KiB")),
        (format!("{}.b.c", "A".repeat(8_000)), bad_header),
    ];
    for (jwt, expected) in rows {
        assert_eq!(error(&jwt), expected, "{jwt}");
    }
    // Signed as it is, but not base64url: padding, the other alphabet, a second spelling.
    for payload in
        [format!("{body}="), format!("{body}=="), format!("{body} "), format!("{body}A"), "e30".to_owned() + "+"]
    {
        let message = format!("{header}.{payload}");
        let got = error(&format!("{message}.{}", signature_of(&message)));
        assert_eq!(got, TokenError::Malformed("the payload is not a JSON object in base64url"), "{payload}");
    }
    // Every single character counts.
    for at in (0..good.len()).step_by(3) {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        assert!(verify_at(&verifier(), &String::from_utf8(bytes).unwrap(), NOW).is_err(), "{at}");
    }
    for cut in 0..good.len() {
        assert!(verify_at(&verifier(), &good[..cut], NOW).is_err(), "{cut}");
    }
}

/// Each kind of key with its algorithm's name, what signs for it, and its public half.
fn kinds() -> [(&'static str, Algorithm, EncodingKey, &'static str); 4] {
    [
        ("RS256", Algorithm::RS256, EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap(), RSA_PUB),
        ("ES256", Algorithm::ES256, EncodingKey::from_ec_pem(P256.as_bytes()).unwrap(), P256_PUB),
        ("ES384", Algorithm::ES384, EncodingKey::from_ec_pem(P384.as_bytes()).unwrap(), P384_PUB),
        ("EdDSA", Algorithm::EdDSA, EncodingKey::from_ed_pem(ED.as_bytes()).unwrap(), ED_PUB),
    ]
}

#[test]
fn the_key_decides_the_algorithm() {
    let body = payload().to_string();
    for (name, algorithm, private, public) in kinds() {
        let verifier = Verifier::from_pem(public, Rules::default()).unwrap();
        let good = signed(&format!(r#"{{"alg":"{name}"}}"#), &body, &private, algorithm);
        assert_eq!(verify_at(&verifier, &good, NOW).unwrap().user.as_str(), "alice", "{name}");
        // The public key as an HS256 secret, with and without its last line break, and as DER-ish text.
        for secret in [public, public.trim_end(), &public.replace('\n', "")] {
            let forged =
                signed(r#"{"alg":"HS256"}"#, &body, &EncodingKey::from_secret(secret.as_bytes()), Algorithm::HS256);
            assert_eq!(verify_at(&verifier, &forged, NOW), Err(TokenError::Algorithm), "{name}");
            // The header lies about what was done.
            let (_, rest) = forged.split_once('.').unwrap();
            let lied = format!("{}.{rest}", base64url(format!(r#"{{"alg":"{name}"}}"#).as_bytes()));
            assert_eq!(verify_at(&verifier, &lied, NOW), Err(TokenError::Signature), "{name}");
        }
        for other in
            ["none", "HS256", "HS512", "RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA", "ES256K", "Ed25519"]
        {
            if other != name {
                let swapped = signed(&format!(r#"{{"alg":"{other}"}}"#), &body, &private, algorithm);
                assert_eq!(verify_at(&verifier, &swapped, NOW), Err(TokenError::Algorithm), "{name} as {other}");
            }
        }
        let unsigned = format!("{}.", good.rsplit_once('.').unwrap().0);
        assert_eq!(verify_at(&verifier, &unsigned, NOW), Err(TokenError::Signature), "{name}");
        for (other, algorithm, private, _) in kinds() {
            if other != name {
                let crossed = signed(&format!(r#"{{"alg":"{name}"}}"#), &body, &private, algorithm);
                assert_eq!(verify_at(&verifier, &crossed, NOW), Err(TokenError::Signature), "{other} for {name}");
            }
        }
        // Signatures of nothing but zeros, of the right length for some curve (CVE-2022-21449).
        for len in [32, 64, 96, 256] {
            let message = good.rsplit_once('.').unwrap().0;
            let zeros = format!("{message}.{}", base64url(&vec![0; len]));
            assert_eq!(verify_at(&verifier, &zeros, NOW), Err(TokenError::Signature), "{name}");
        }
        // A key that the token brings along is not looked at.
        let jwk = serde_json::to_string(&Jwk::from_encoding_key(&private, algorithm).unwrap()).unwrap();
        let own = signed(
            &format!(r#"{{"alg":"{name}","jwk":{jwk},"jku":"https://evil"}}"#),
            &body,
            &EncodingKey::from_secret(SECRET),
            Algorithm::HS256,
        );
        assert_eq!(verify_at(&verifier, &own, NOW), Err(TokenError::Signature), "{name}");
    }
}

fn jwk(private: &EncodingKey, algorithm: Algorithm, kid: Option<&str>, keep_alg: bool) -> Value {
    let mut jwk = Jwk::from_encoding_key(private, algorithm).unwrap();
    jwk.common.key_id = kid.map(str::to_owned);
    if !keep_alg {
        jwk.common.key_algorithm = None;
    }
    serde_json::to_value(&jwk).unwrap()
}

#[test]
fn a_key_set_chooses_by_kid() {
    let body = payload().to_string();
    let keys: Vec<Value> = kinds()
        .iter()
        .enumerate()
        .map(|(n, (name, algorithm, private, _))| jwk(private, *algorithm, Some(name), n % 2 == 0))
        .collect();
    let oct = json!({"kty": "oct", "kid": "shared", "k": base64url(SECRET)});
    let unknown = json!({"kty": "PQC", "kid": "later", "x": "AA"});
    let encryption = json!({"kty": "oct", "kid": "enc", "use": "enc", "k": base64url(SECRET)});
    let keys = [keys, vec![oct, unknown, encryption]].concat();
    let set = json!({ "keys": keys }).to_string();
    let verifier = Verifier::from_jwks(&set, Rules::default()).unwrap();
    for (name, algorithm, private, _) in kinds() {
        let with = |header: String| verify_at(&verifier, &signed(&header, &body, &private, algorithm), NOW);
        assert!(with(format!(r#"{{"alg":"{name}","kid":"{name}"}}"#)).is_ok(), "{name}");
        assert_eq!(with(format!(r#"{{"alg":"{name}"}}"#)), Err(TokenError::UnknownKey));
        assert_eq!(with(format!(r#"{{"alg":"{name}","kid":""}}"#)), Err(TokenError::UnknownKey));
        assert_eq!(with(format!(r#"{{"alg":"{name}","kid":"../../dev/null"}}"#)), Err(TokenError::UnknownKey));
        assert_eq!(with(format!(r#"{{"alg":"{name}","kid":"{}"}}"#, name.to_lowercase())), Err(TokenError::UnknownKey));
        assert_eq!(with(format!(r#"{{"alg":"{name}","kid":"later"}}"#)), Err(TokenError::UnknownKey));
        assert_eq!(with(format!(r#"{{"alg":"{name}","kid":"shared"}}"#)), Err(TokenError::Algorithm));
        assert_eq!(with(format!(r#"{{"alg":"HS256","kid":"{name}"}}"#)), Err(TokenError::Algorithm));
    }
    assert!(verify_at(&verifier, &hs256(r#"{"alg":"HS256","kid":"shared"}"#, &body), NOW).is_ok());
    assert_eq!(verify_at(&verifier, &hs256(r#"{"alg":"HS256","kid":"enc"}"#, &body), NOW), Err(TokenError::UnknownKey));

    // A lone key answers to no name as well, and to its own, but to no other.
    let (_, algorithm, private, _) = &kinds()[1];
    let lone = json!({"keys": [jwk(private, *algorithm, Some("k1"), true)]}).to_string();
    let lone = Verifier::from_jwks(&lone, Rules::default()).unwrap();
    let with = |header: &str| verify_at(&lone, &signed(header, &body, private, *algorithm), NOW).map(drop);
    assert_eq!(with(r#"{"alg":"ES256"}"#), Ok(()));
    assert_eq!(with(r#"{"alg":"ES256","kid":"k1"}"#), Ok(()));
    assert_eq!(with(r#"{"alg":"ES256","kid":"k2"}"#), Err(TokenError::UnknownKey));
}

#[test]
fn keys_that_are_refused() {
    let pem = |text: &str| Verifier::from_pem(text, Rules::default()).map(drop);
    let jwks = |text: &str| Verifier::from_jwks(text, Rules::default()).map(drop);
    let secret = |len: usize| Verifier::from_secret(&vec![b'k'; len], Rules::default()).map(drop);
    let set = |keys: Value| jwks(&json!({ "keys": keys }).to_string());
    let why = |result: Result<(), KeyError>| result.unwrap_err().to_string();

    assert_eq!(why(secret(31)), "a secret has at least 32 bytes, this one has 31");
    assert_eq!(why(secret(0)), "a secret has at least 32 bytes, this one has 0");
    assert_eq!(secret(32), Ok(()));
    assert!(why(pem(RSA)).contains("private"));
    assert!(why(pem(P256)).contains("private"));
    assert!(why(pem(ED)).contains("private"));
    assert!(why(pem("")).contains("not a public key"));
    assert!(why(pem(include_str!("keys/cert.pem"))).contains("not a public key"));
    assert!(why(pem("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")).contains("not an RSA"));
    assert!(why(pem(include_str!("keys/rsa1024.pub.pem"))).contains("2048"));
    assert!(why(pem(include_str!("keys/p521.pub.pem"))).contains("P-256"));
    assert_eq!(pem(include_str!("keys/rsa.pkcs1.pub.pem")), Ok(()));

    assert!(why(jwks("")).contains("JWK set"));
    assert!(why(jwks("{}")).contains("JWK set"));
    assert!(why(jwks(RSA_PUB)).contains("JWK set"));
    assert!(why(set(json!([]))).contains("no key"));
    assert!(why(set(json!([{"kty": "PQC", "kid": "a"}]))).contains("no key"));
    assert!(why(set(json!([{"kty": "oct", "k": base64url(&[1; 31])}]))).contains("at least 32"));
    assert!(why(set(json!([{"kty": "oct", "k": "###"}]))).contains("base64url"));
    assert!(why(set(json!([{"kty": "oct", "alg": "RS256", "k": base64url(SECRET)}]))).contains("not of its kind"));
    assert!(why(set(json!([{"kty": "oct", "alg": "none", "k": base64url(SECRET)}]))).contains("no key"));
    assert!(why(set(json!([{"kty": "OKP", "crv": "Ed25519", "x": base64url(&[1; 31])}]))).contains("32 bytes"));
    assert!(
        why(set(json!([{"kty": "EC", "crv": "P-256", "x": base64url(&[1; 31]), "y": base64url(&[1; 32])}])))
            .contains("65 bytes")
    );
    assert!(why(set(json!([{"kty": "RSA", "n": base64url(&[1; 128]), "e": "AQAB"}]))).contains("2048"));
    assert!(
        why(set(json!([{"kty": "RSA", "n": base64url(&[&[0; 200][..], &[1; 128]].concat()), "e": "AQAB"}])))
            .contains("2048")
    );
    let one = json!({"kty": "oct", "kid": "a", "k": base64url(SECRET)});
    assert!(why(set(json!([one, one]))).contains("same kid"));
    let nameless = json!({"kty": "oct", "k": base64url(&[7; 40])});
    assert!(why(set(json!([one, nameless]))).contains("needs a kid"));
}

#[test]
fn issuer_and_audience_when_configured() {
    let rules = Rules {
        issuer: Some("https://id".into()),
        audience: vec!["chat".into(), "antiphon".into()],
        ..Rules::default()
    };
    let verifier = Verifier::from_secret(SECRET, rules).unwrap();
    let claim = |name, why| Err(TokenError::Claim(name, why));
    let rows = [
        (r#""iss":"https://id","aud":"chat""#, Ok(())),
        (r#""iss":"https://id","aud":["other","antiphon"]"#, Ok(())),
        (r#""iss":"https://id""#, claim("aud", "is missing")),
        (r#""iss":"https://id","aud":"Chat""#, claim("aud", "does not name this server")),
        (r#""iss":"https://id","aud":[]"#, claim("aud", "does not name this server")),
        (r#""iss":"https://id","aud":["chat",1]"#, claim("aud", "must be a string or an array of strings")),
        (r#""iss":"https://id/","aud":"chat""#, claim("iss", "is not the one configured")),
        (r#""iss":"","aud":"chat""#, claim("iss", "is not the one configured")),
        (r#""iss":["https://id"],"aud":"chat""#, claim("iss", "must be a string")),
        (r#""aud":"chat""#, claim("iss", "is missing")),
    ];
    for (fields, expected) in rows {
        let jwt = hs256(HEADER, &format!(r#"{{"sub":"alice","exp":1800000060,{fields}}}"#));
        assert_eq!(verify_at(&verifier, &jwt, NOW).map(drop), expected, "{fields}");
    }
}

#[test]
fn tokens_that_pass_and_what_they_say() {
    let claims = |header: &str, body: &str| verify_at(&verifier(), &hs256(header, body), NOW).unwrap();
    for typ in ["JWT", "jwt", "at+jwt", "application/at+jwt", "application/JWT"] {
        claims(&format!(r#"{{"typ":"{typ}","alg":"HS256","cty":"x","x5u":"https://evil"}}"#), &payload().to_string());
    }
    claims(r#"{"alg":"HS256","kid":"anything"}"#, &payload().to_string());
    let least = claims(HEADER, r#"{"sub":"a.b_c@d-e","exp":1800000060}"#);
    assert_eq!((least.issued_at, least.jti, least.admin, least.rooms), (None, None, false, None));
    let most = claims(
        HEADER,
        r#"{"sub":"alice","exp":1800000060.5,"nbf":1800000005,"iat":1800000005,"jti":"\u0000","admin":true,"name":["any"],"iss":"x","rooms":{}}"#,
    );
    assert_eq!(
        (most.expires_at, most.issued_at, most.jti.as_deref()),
        (1_800_000_060_500, Some(1_800_000_005), Some("\0"))
    );
    assert_eq!((most.admin, most.rooms.as_deref()), (true, Some(&[][..])));
    let rooms = claims(HEADER, r#"{"sub":"alice","exp":1e300,"rooms":{"*":"r","team/*":"rw","größe":"r"}}"#);
    assert_eq!(
        rooms.rooms.as_deref(),
        Some(&[("*".into(), false), ("team/*".into(), true), ("größe".into(), false)][..])
    );
    assert_eq!(rooms.expires_at, 253_402_300_799_000);
    // The leeway ends at its last millisecond.
    let jwt = hs256(HEADER, r#"{"sub":"alice","exp":1800000000}"#);
    assert!(verifier().verify(&jwt, NOW * 1_000 + 4_999).is_ok());
    assert_eq!(verifier().verify(&jwt, NOW * 1_000 + 5_000), Err(TokenError::Expired));
    let strict = Verifier::from_secret(SECRET, Rules { leeway_ms: 0, ..Rules::default() }).unwrap();
    assert!(strict.verify(&jwt, NOW * 1_000 - 1).is_ok());
    assert_eq!(strict.verify(&jwt, NOW * 1_000), Err(TokenError::Expired));
    // Any time at all is a time.
    assert!(strict.verify(&jwt, 0).is_ok());
    assert_eq!(strict.verify(&jwt, u64::MAX), Err(TokenError::Expired));
}

#[test]
fn errors_hold_nothing_of_the_token() {
    let secretive = ["sesame", "s3cr3t-user", "c2VzYW1l"];
    let tokens = [
        hs256(HEADER, r#"{"sub":"s3cr3t user sesame","exp":1800000060}"#),
        hs256(r#"{"alg":"sesame"}"#, "{}"),
        hs256(r#"{"alg":"HS256","typ":"sesame"}"#, "{}"),
        hs256(HEADER, r#"{"sub":"alice","exp":"sesame"}"#),
        hs256(HEADER, r#"{"sub":"alice","exp":1800000060,"rooms":{"sesame**":"r"}}"#),
        "sesame.sesame.sesame".into(),
        "sesame".into(),
    ];
    for jwt in &tokens {
        let got = error(jwt);
        let texts = [got.to_string(), format!("{got:?}"), got.refusal().to_string()];
        assert!(texts.iter().all(|text| secretive.iter().all(|secret| !text.contains(secret))), "{texts:?}");
        assert!(texts[0].len() <= 120, "fits a close reason: {}", texts[0]);
    }
}
