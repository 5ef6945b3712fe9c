//! `antiphon token`: signs a token with the secret that the server checks with.
//!
//! For trying out, for tests and for operators. In production tokens come from whoever knows the
//! users; this command works only where the HS256 secret is at hand.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::{Shared, serve};
use crate::config::secrets::KeyMaterial;
use crate::config::value::FilePath;
use crate::config::{AuthConfig, Config, KeySource, Secret};
use crate::exit::{Exit, StartError};
use crate::gateway::token::{self, NewToken};
use crate::protocol::ids::{DeviceId, RoomName, UnixMillis, UserId};

const EXAMPLES: &str = "\
Examples:
  antiphon token --user alice
  antiphon token --user alice --ttl 7d --rooms 'general=rw,news-*=r'
  websocat \"$(antiphon token --user alice --url --device laptop)\"

Only the token (or URL) goes to standard output. Whoever has it is that user until it expires.";

/// Longest life of a token that this command makes.
const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Flags of `token`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Token {
    #[command(flatten)]
    shared: Shared,
    /// HS256 secret [default: as the server finds it]
    #[arg(long, env = "ANTIPHON_JWT_SECRET", hide_env = true, value_name = "SECRET")]
    jwt_secret: Option<Secret>,
    /// File that holds the HS256 secret [default: as the server finds it]
    #[arg(long, env = "ANTIPHON_JWT_SECRET_FILE", hide_env = true, value_name = "PATH")]
    jwt_secret_file: Option<PathBuf>,
    /// User id, the `sub` claim: 1 to 64 of A-Z a-z 0-9 . _ @ -
    #[arg(long, value_parser = parse_user)]
    user: UserId,
    /// How long it is valid: a number and s, m, h or d
    #[arg(long, default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
    /// May do everything in every room
    #[arg(long)]
    admin: bool,
    /// Only these rooms: NAME=r or NAME=rw, separated by commas; a * at the end matches every rest
    #[arg(long, value_parser = parse_rooms, value_name = "ROOM=r|rw,…")]
    rooms: Option<Rooms>,
    /// Print a ws:// URL with the token in it instead of the token
    #[arg(long)]
    url: bool,
    /// Device in the URL: 1 to 64 of A-Z a-z 0-9 . _ -
    #[arg(long, requires = "url", value_parser = parse_device)]
    device: Option<DeviceId>,
}

/// The `rooms` claim: pattern and "may write".
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rooms(Vec<(String, bool)>);

impl Token {
    /// # Errors
    /// The configuration is wrong, or has no secret to sign with.
    pub(super) fn run(&self) -> Result<Exit, StartError> {
        let config = self.config()?;
        let key = &config.auth.key;
        // A secret made here would be no server's: with a wrong folder the token would be refused everywhere.
        if let KeySource::Development(path) = key
            && !path.exists()
        {
            return Err(StartError::usage(format!(
                "there is no development secret in {}: start the server once with this data folder, which makes it, or \
                 give the server's own folder (--data-dir) or secret (--jwt-secret, --jwt-secret-file)",
                path.display()
            )));
        }
        let secret = match key.read()? {
            KeyMaterial::Hs256(secret) => secret,
            KeyMaterial::PublicKeyPem(_) | KeyMaterial::Jwks(_) => {
                return Err(StartError::usage(format!(
                    "the server checks with the {}; only whoever has the private key can make tokens",
                    key.describe()
                )));
            }
        };
        let token = self.sign(&config.auth, &secret)?;
        if !self.url {
            super::print(&format!("{token}\n"))?;
            return Ok(Exit::Ok);
        }
        if config.server.listen.port() == 0 {
            return Err(StartError::usage("server.listen has port 0: the URL needs the port that the server chose"));
        }
        let device = self.device.as_ref().map_or("default", DeviceId::as_str);
        let address = serve::reachable(config.server.listen);
        super::print(&format!("ws://{address}/ws?device={device}&access_token={token}\n"))?;
        Ok(Exit::Ok)
    }

    fn config(&self) -> Result<Config, StartError> {
        let mut flags = self.shared.flags();
        if self.jwt_secret.is_some() {
            flags.auth.jwt_secret.clone_from(&self.jwt_secret);
        }
        if let Some(path) = &self.jwt_secret_file {
            flags.auth.jwt_secret_file = Some(FilePath(path.clone()));
        }
        Config::load(&flags)
    }

    fn sign(&self, auth: &AuthConfig, secret: &Secret) -> Result<String, StartError> {
        let failed = |what: &dyn std::fmt::Display| StartError::new(Exit::Failure, format!("no token: {what}"));
        // With an id of its own the token can be revoked alone.
        let mut random = [0u8; 12];
        getrandom::fill(&mut random).map_err(|err| failed(&err))?;
        let jti: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|err| failed(&err))?;
        let millis = |time: Duration| UnixMillis::try_from(time.as_millis()).unwrap_or(UnixMillis::MAX);
        let token = NewToken {
            jti: Some(&jti),
            admin: self.admin,
            rooms: self.rooms.as_ref().map(|rooms| &rooms.0[..]),
            issuer: auth.issuer.as_deref(),
            audience: auth.audience.as_deref(),
            ..NewToken::new(&self.user, millis(now), millis(now + self.ttl))
        };
        token::mint(secret.reveal().as_bytes(), &token).map_err(|err| failed(&err))
    }
}

fn parse_user(text: &str) -> Result<UserId, String> {
    UserId::parse(text).map_err(|bad| bad.to_string())
}

fn parse_device(text: &str) -> Result<DeviceId, String> {
    DeviceId::parse(text).map_err(|bad| bad.to_string())
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let rule = || "it must be a number and s, m, h or d, from 1s to 366d".to_owned();
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(rule()),
    };
    let number: u64 = number.parse().map_err(|_| rule())?;
    let ttl = Duration::from_secs(number.checked_mul(seconds).ok_or_else(rule)?);
    if ttl.is_zero() || ttl > TTL_MAX { Err(rule()) } else { Ok(ttl) }
}

fn parse_rooms(text: &str) -> Result<Rooms, String> {
    let rule = |item: &str| format!("{item:?} is not ROOM=r or ROOM=rw");
    let mut rooms = Vec::new();
    for item in text.split(',') {
        let (pattern, rights) = item.rsplit_once('=').ok_or_else(|| rule(item))?;
        let exact = pattern.strip_suffix('*').unwrap_or(pattern);
        let is_pattern = RoomName::is_valid(exact) || (exact.is_empty() && pattern == "*");
        if !is_pattern || !matches!(rights, "r" | "rw") {
            return Err(rule(item));
        }
        rooms.push((pattern.to_owned(), rights == "rw"));
    }
    Ok(Rooms(rooms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_numbers_with_a_unit() {
        for (text, seconds) in [("1s", 1), ("90m", 5_400), ("1h", 3_600), ("366d", 31_622_400)] {
            assert_eq!(parse_ttl(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "1", "h", "0s", "-1h", "1.5h", "1w", "367d", "99999999999999999999d", "1é"] {
            assert!(parse_ttl(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rooms_are_patterns_with_rights() {
        let rooms = parse_rooms("general=rw,news-*=r,*=r,a=b=rw").unwrap();
        let pairs: Vec<_> = rooms.0.iter().map(|(pattern, may_write)| (&**pattern, *may_write)).collect();
        assert_eq!(pairs, [("general", true), ("news-*", false), ("*", false), ("a=b", true)]);
        for bad in ["", "general", "general=", "general=w", "=rw", "a*b=r", "**=r", "a=rw,", " a=rw"] {
            assert!(parse_rooms(bad).is_err(), "{bad:?}");
        }
    }
}
