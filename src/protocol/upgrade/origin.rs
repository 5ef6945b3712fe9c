//! The list of origins that may connect.
//!
//! An `Origin` header matches when it equals an entry byte for byte: browsers send the lower-case,
//! shortest form (RFC 6454 section 6.2), so anything else is not from a browser or not from the list.

/// Which `Origin` headers are let in. A request without one is not from a browser and not judged here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins {
    any: bool,
    list: Vec<Box<str>>,
}

impl Origins {
    /// The pages of this machine's own listener: `http://127.0.0.1:port` and `http://localhost:port`.
    pub fn local(port: u16) -> Self {
        let list = ["127.0.0.1", "localhost"].map(|host| format!("http://{host}:{port}").into_boxed_str());
        Self { any: false, list: list.into() }
    }

    /// The origins of a configuration; an empty list lets no browser in, `*` every one.
    ///
    /// # Errors
    /// One sentence, when an entry could never match what a browser sends.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut origins = Self { any: false, list: Vec::new() };
        for entry in entries {
            if entry == "*" {
                origins.any = true;
            } else if is_origin(entry) {
                origins.list.push(entry.into());
            } else {
                return Err(format!(
                    "{entry:?} is not an origin: write scheme://host or scheme://host:port in lower case, without a path"
                ));
            }
        }
        Ok(origins)
    }

    /// True when a page of this origin may connect.
    pub fn allows(&self, origin: &[u8]) -> bool {
        self.any || self.list.iter().any(|entry| entry.as_bytes() == origin)
    }
}

/// `scheme "://" host [":" port]` as a browser would write it; `null` is nobody's origin.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let default = matches!((scheme, port), ("http", "80") | ("https", "443"));
            let is_number = port.parse::<u16>().is_ok_and(|number| number.to_string() == port);
            if default || !is_number {
                return false;
            }
            host
        }
        _ => authority,
    };
    let is_scheme_byte =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.');
    let is_host_byte = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']')
    };
    !scheme.is_empty() && scheme.bytes().all(is_scheme_byte) && !host.is_empty() && host.bytes().all(is_host_byte)
}
