//! The kinds of value a knob can have: how each is read from a flag, a variable or TOML, and how it
//! is written as TOML.
//!
//! A kind knows its syntax, not its meaning: ranges stand beside the knobs, relations in `Config`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// What every kind of value can do.
pub trait Value: FromStr {
    /// What help shows in place of the value.
    const PLACEHOLDER: &'static str;

    /// The value as TOML. None: it is secret and set.
    fn toml(&self) -> Option<String>;

    /// The value for a range check, if it is a number.
    fn number(&self) -> Option<u64> {
        None
    }
}

/// Text that must not be seen in logs, in `--print-config` or in a panic. Empty: not set.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// True when nothing was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text itself. Whoever asks for it must not print it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "(not set)" } else { "(redacted)" })
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl Value for Secret {
    const PLACEHOLDER: &'static str = "SECRET";

    fn toml(&self) -> Option<String> {
        self.is_empty().then(|| quoted(""))
    }
}

/// How many shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardCount {
    /// As the machine suggests.
    Auto,
    /// So many.
    Fixed(u16),
}

impl ShardCount {
    /// Most shards of one process.
    pub const MAX: u16 = 256;

    /// The number for a machine with `cores` usable cores: all of them on a small machine, and from
    /// four on all but one, which is left to the store, the readers and the control thread.
    pub fn resolve(self, cores: usize) -> u16 {
        match self {
            Self::Fixed(count) => count,
            Self::Auto => {
                let spare = usize::from(cores >= 4);
                u16::try_from(cores.saturating_sub(spare)).unwrap_or(Self::MAX).clamp(1, Self::MAX)
            }
        }
    }
}

impl FromStr for ShardCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u16>() {
            Ok(count) if (1..=Self::MAX).contains(&count) => Ok(Self::Fixed(count)),
            _ if text == "auto" => Ok(Self::Auto),
            _ => Err(format!("it must be \"auto\" or a number from 1 to {}", Self::MAX)),
        }
    }
}

impl<'de> Deserialize<'de> for ShardCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer)
    }
}

impl Value for ShardCount {
    const PLACEHOLDER: &'static str = "auto|N";

    fn toml(&self) -> Option<String> {
        Some(match self {
            Self::Auto => quoted("auto"),
            Self::Fixed(count) => count.to_string(),
        })
    }
}

/// On or off. TOML may say it as a boolean as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" | "true" | "yes" | "1" => Ok(Self(true)),
            "off" | "false" | "no" | "0" => Ok(Self(false)),
            _ => Err("it must be \"on\" or \"off\"".to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer)
    }
}

impl Value for Switch {
    const PLACEHOLDER: &'static str = "on|off";

    fn toml(&self) -> Option<String> {
        Some(quoted(if self.0 { "on" } else { "off" }))
    }
}

macro_rules! choice {
    ($(#[doc = $doc:literal])+ $name:ident, $placeholder:literal { $($(#[doc = $vdoc:literal])+ $variant:ident = $text:literal;)+ }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $vdoc])+ $variant,)+ }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(concat!("it must be one of ", $placeholder).to_owned()),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                scalar(deserializer)
            }
        }

        impl Value for $name {
            const PLACEHOLDER: &'static str = $placeholder;

            fn toml(&self) -> Option<String> {
                Some(quoted(match self { $(Self::$variant => $text,)+ }))
            }
        }
    };
}

choice!(
    /// When an append counts as stored.
    Durability, "full|relaxed" {
        /// After fsync: it survives a power cut.
        Full = "full";
        /// After the write: it survives a crash of the process, not of the machine.
        Relaxed = "relaxed";
    }
);

choice!(
    /// What a line of the log looks like.
    LogFormat, "text|json" {
        /// For people.
        Text = "text";
        /// One JSON object a line.
        Json = "json";
    }
);

/// A list of origins. In a flag or a variable they are separated by commas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Origins(pub Vec<String>);

impl FromStr for Origins {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.split(',').map(str::trim).filter(|origin| !origin.is_empty()).map(str::to_owned).collect()))
    }
}

impl Value for Origins {
    const PLACEHOLDER: &'static str = "ORIGIN,…";

    fn toml(&self) -> Option<String> {
        let items: Vec<String> = self.0.iter().map(|origin| quoted(origin)).collect();
        Some(format!("[{}]", items.join(", ")))
    }
}

/// A path; empty: not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct FilePath(pub PathBuf);

impl FilePath {
    /// The path, if one was given.
    pub fn get(&self) -> Option<&std::path::Path> {
        (!self.0.as_os_str().is_empty()).then_some(self.0.as_path())
    }
}

impl FromStr for FilePath {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(PathBuf::from(text)))
    }
}

impl Value for FilePath {
    const PLACEHOLDER: &'static str = "PATH";

    fn toml(&self) -> Option<String> {
        Some(quoted(&self.0.to_string_lossy()))
    }
}

impl Value for SocketAddr {
    const PLACEHOLDER: &'static str = "IP:PORT";

    fn toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Value for String {
    const PLACEHOLDER: &'static str = "TEXT";

    fn toml(&self) -> Option<String> {
        Some(quoted(self))
    }
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Value for $type {
            const PLACEHOLDER: &'static str = "N";

            fn toml(&self) -> Option<String> {
                Some(self.to_string())
            }

            fn number(&self) -> Option<u64> {
                Some(u64::from(*self))
            }
        }
    )*};
}

number!(u16, u32, u64);

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Reads a value that TOML may hold as a string, an integer or a boolean, by its text.
fn scalar<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(deserializer: D) -> Result<T, D::Error> {
    struct Text<T>(std::marker::PhantomData<T>);

    impl<T: FromStr<Err = String>> de::Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string, an integer or a boolean")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_bool<E: de::Error>(self, truth: bool) -> Result<T, E> {
            self.visit_str(if truth { "true" } else { "false" })
        }
    }

    deserializer.deserialize_any(Text(std::marker::PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_follow_the_machine() {
        for (cores, shards) in [(1, 1), (2, 2), (3, 3), (4, 3), (64, 63), (1000, 256)] {
            assert_eq!(ShardCount::Auto.resolve(cores), shards, "{cores} cores");
        }
        assert_eq!(ShardCount::Fixed(4).resolve(2), 4);
        for bad in ["0", "257", "-1", "many", ""] {
            assert!(bad.parse::<ShardCount>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let secret = Secret::new("hunter2hunter2hunter2hunter2hunter2");
        assert!(!format!("{secret:?}").contains("hunter"));
        assert_eq!(secret.toml(), None);
        assert_eq!(Secret::default().toml().as_deref(), Some("\"\""));
    }

    #[test]
    fn text_is_quoted_so_that_toml_reads_it_back() {
        for text in ["", "a\"b", "a\\b", "a\nb", "größe", "\u{1b}[31m"] {
            let line = format!("key = {}", quoted(text));
            let table: toml::Table = line.parse().unwrap();
            assert_eq!(table["key"].as_str(), Some(text), "{line}");
        }
    }
}
