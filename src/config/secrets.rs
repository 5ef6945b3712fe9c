//! The keys that tokens are checked with, and the admin token: where they come from, and the making
//! of both when nobody gave any.
//!
//! A made secret is a file in the data folder, mode 0600, that appears whole or not at all and is
//! never overwritten, so that two processes that start at once agree on one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::knobs;
use super::value::Secret;
use crate::exit::{Exit, StartError};

/// Shortest HS256 secret (RFC 7518 section 3.2: at least the size of the hash).
pub const JWT_SECRET_BYTES_MIN: usize = 32;
/// Shortest admin token.
pub const ADMIN_TOKEN_BYTES_MIN: usize = 16;
/// Name of the development secret in the data folder.
pub const DEV_SECRET_FILE: &str = "dev-secret";
/// Name of the made admin token in the data folder.
pub const ADMIN_TOKEN_FILE: &str = "admin-token";
/// Largest key file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// What the development secret is called in messages.
const DEV_SECRET: &str = "the development secret";
/// Random bytes of a made secret.
const MADE_BYTES: usize = 32;

/// Where the key that tokens are checked with comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// An HS256 secret as it was given.
    Secret(Secret),
    /// A file that holds an HS256 secret.
    SecretFile(PathBuf),
    /// A PEM file of one public key.
    PublicKeyFile(PathBuf),
    /// A file of several public keys.
    JwksFile(PathBuf),
    /// An HS256 secret that is made in the data folder at first use.
    Development(PathBuf),
}

/// A key as it was read, for the part that checks tokens to parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyMaterial {
    /// At least [`JWT_SECRET_BYTES_MIN`] bytes, for HS256.
    Hs256(Secret),
    /// The text of a PEM file.
    PublicKeyPem(String),
    /// The text of a JWKS file.
    Jwks(String),
}

/// A secret, and whether it was made by this very call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made<T> {
    /// The secret.
    pub value: T,
    /// True when it did not exist before.
    pub is_new: bool,
}

impl KeySource {
    /// The one source that was given.
    ///
    /// # Errors
    /// More than one was given, or a secret is too short.
    pub(super) fn choose(auth: &knobs::Auth, data_dir: &Path) -> Result<Self, String> {
        let mut given: Vec<(&str, Self)> = Vec::new();
        if !auth.jwt_secret.is_empty() {
            check_length("auth.jwt_secret", auth.jwt_secret.reveal(), JWT_SECRET_BYTES_MIN)?;
            given.push(("jwt_secret", Self::Secret(auth.jwt_secret.clone())));
        }
        if let Some(path) = auth.jwt_secret_file.get() {
            given.push(("jwt_secret_file", Self::SecretFile(path.to_owned())));
        }
        if let Some(path) = auth.jwt_public_key_file.get() {
            given.push(("jwt_public_key_file", Self::PublicKeyFile(path.to_owned())));
        }
        if let Some(path) = auth.jwks_file.get() {
            given.push(("jwks_file", Self::JwksFile(path.to_owned())));
        }
        if given.len() > 1 {
            let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
            return Err(format!("[auth] takes one key, but has {}", names.join(" and ")));
        }
        Ok(given.pop().map_or_else(|| Self::Development(data_dir.join(DEV_SECRET_FILE)), |(_, source)| source))
    }

    /// Reads the key; makes the development secret (and the data folder) when it does not exist.
    ///
    /// # Errors
    /// The file cannot be read or written, or the secret is too short.
    pub fn load(&self) -> Result<Made<KeyMaterial>, StartError> {
        match self {
            Self::Development(path) => {
                let made = read_or_make(path, DEV_SECRET, JWT_SECRET_BYTES_MIN)?;
                Ok(Made { value: KeyMaterial::Hs256(made.value), is_new: made.is_new })
            }
            _ => Ok(Made { value: self.read()?, is_new: false }),
        }
    }

    /// Reads the key and makes nothing: for those who use the key of a server, which makes its own.
    ///
    /// # Errors
    /// The file is not there or cannot be read, or the secret is too short.
    pub fn read(&self) -> Result<KeyMaterial, StartError> {
        let secret = |path, what| read_secret(path, what, JWT_SECRET_BYTES_MIN).map(KeyMaterial::Hs256);
        match self {
            Self::Secret(secret) => Ok(KeyMaterial::Hs256(secret.clone())),
            Self::SecretFile(path) => secret(path, "the HS256 secret"),
            Self::PublicKeyFile(path) => Ok(KeyMaterial::PublicKeyPem(read_text(path, "the public key")?)),
            Self::JwksFile(path) => Ok(KeyMaterial::Jwks(read_text(path, "the JWKS")?)),
            Self::Development(path) => secret(path, DEV_SECRET),
        }
    }

    /// In words, without the secret.
    pub fn describe(&self) -> String {
        match self {
            Self::Secret(_) => "HS256 secret as given".to_owned(),
            Self::SecretFile(path) => format!("HS256 secret in {}", path.display()),
            Self::PublicKeyFile(path) => format!("public key in {}", path.display()),
            Self::JwksFile(path) => format!("public keys in {}", path.display()),
            Self::Development(path) => format!("development secret in {}", path.display()),
        }
    }
}

/// Where the admin token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminSource {
    /// As it was given.
    Token(Secret),
    /// A file that holds it.
    File(PathBuf),
    /// Made in the data folder at first use.
    Made(PathBuf),
}

impl AdminSource {
    /// # Errors
    /// Both were given, or the token is too short.
    pub(super) fn choose(admin: &knobs::Admin, data_dir: &Path) -> Result<Self, String> {
        match (admin.token.is_empty(), admin.token_file.get()) {
            (false, Some(_)) => Err("[admin] takes token or token_file, but has both".to_owned()),
            (false, None) => {
                check_length("admin.token", admin.token.reveal(), ADMIN_TOKEN_BYTES_MIN)?;
                Ok(Self::Token(admin.token.clone()))
            }
            (true, Some(path)) => Ok(Self::File(path.to_owned())),
            (true, None) => Ok(Self::Made(data_dir.join(ADMIN_TOKEN_FILE))),
        }
    }

    /// Reads the token; makes it (and the data folder) when it does not exist.
    ///
    /// # Errors
    /// The file cannot be read or written, or the token is too short.
    pub fn load(&self) -> Result<Made<Secret>, StartError> {
        match self {
            Self::Token(token) => Ok(Made { value: token.clone(), is_new: false }),
            Self::File(path) => {
                let value = read_secret(path, "the admin token", ADMIN_TOKEN_BYTES_MIN)?;
                Ok(Made { value, is_new: false })
            }
            Self::Made(path) => read_or_make(path, "the admin token", ADMIN_TOKEN_BYTES_MIN),
        }
    }

    /// In words, without the token.
    pub fn describe(&self) -> String {
        match self {
            Self::Token(_) => "as given".to_owned(),
            Self::File(path) | Self::Made(path) => format!("in {}", path.display()),
        }
    }
}

/// Makes the data folder, for its owner only, if it does not exist.
///
/// # Errors
/// It cannot be made.
pub fn make_data_dir(path: &Path) -> Result<(), StartError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|err| {
        StartError::new(exit_for(&err), format!("the data folder {} cannot be made: {err}", path.display()))
    })
}

/// Whether anybody but its owner may do anything in a folder.
pub fn is_open_to_others(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
}

/// A full disk may be over by itself.
fn exit_for(err: &io::Error) -> Exit {
    match err.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Exit::NotNow,
        _ => Exit::DataDir,
    }
}

fn check_length(what: &str, secret: &str, min: usize) -> Result<(), String> {
    match secret.len() {
        len if len >= min => Ok(()),
        len => Err(format!("{what} has {len} bytes, but at least {min} are needed")),
    }
}

fn read_text(path: &Path, what: &str) -> Result<String, StartError> {
    let unreadable =
        |err: &dyn std::fmt::Display| StartError::usage(format!("{what} in {} cannot be read: {err}", path.display()));
    let bytes = fs::metadata(path).map_err(|err| unreadable(&err))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(unreadable(&format!("it has {bytes} bytes, more than {FILE_BYTES_MAX}")));
    }
    fs::read_to_string(path).map_err(|err| unreadable(&err))
}

fn read_secret(path: &Path, what: &str, min: usize) -> Result<Secret, StartError> {
    let text = read_text(path, what)?;
    // Editors and `echo` end a file with a line break that nobody means.
    let secret = text.trim_end_matches(['\n', '\r']);
    check_length(&format!("{what} in {}", path.display()), secret, min).map_err(StartError::usage)?;
    Ok(Secret::new(secret))
}

fn read_or_make(path: &Path, what: &str, min: usize) -> Result<Made<Secret>, StartError> {
    let mut is_new = false;
    if !path.exists() {
        if let Some(folder) = path.parent() {
            make_data_dir(folder)?;
        }
        is_new = make(path).map_err(|err| {
            StartError::new(exit_for(&err), format!("{what} cannot be written to {}: {err}", path.display()))
        })?;
    }
    Ok(Made { value: read_secret(path, what, min)?, is_new })
}

/// Writes a new secret; false when somebody else was first.
fn make(path: &Path) -> io::Result<bool> {
    let mut random = [0u8; MADE_BYTES];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    // Written beside and linked into place: a crash leaves no half a secret under the real name,
    // and a link, unlike a rename, fails when the name exists.
    let beside = path.with_extension(format!("new-{}-{}", std::process::id(), &text[..8]));
    let result = write_private(&beside, &text).and_then(|()| fs::hard_link(&beside, path));
    fs::remove_file(&beside).or_else(|err| if err.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(err) })?;
    match result {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(err) => Err(err),
    }
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()
}
