//! The tables of error codes (in replies) and close codes (they end the connection).
//!
//! Both tell a client what to do next: an error says whether trying again can help, a close code's
//! range says whether to stop (40xx), to come back with backoff (41xx) or to come back now (42xx).

use std::fmt;

use super::ids::BadName;

macro_rules! codes {
    ($(#[$doc:meta])* $enum:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal, $name:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum $enum { $($(#[$vdoc])* $variant = $number,)* }

        impl $enum {
            /// Every code of the table, in order.
            pub const ALL: &[$enum] = &[$($enum::$variant),*];

            /// The number on the wire.
            pub const fn number(self) -> u16 {
                self as u16
            }

            /// The name on the wire.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl fmt::Display for $enum {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} {}", self.number(), self.name())
            }
        }
    };
}

codes!(
    /// Why a command was not done. Carried in `error` replies.
    ErrorCode {
        /// A fault of the server's. Temporary.
        Internal = 100, "internal";
        /// No valid token, or one of another user.
        Unauthorized = 101, "unauthorized";
        /// No room of that name.
        UnknownRoom = 102, "unknown_room";
        /// The room exists, the right does not.
        PermissionDenied = 103, "permission_denied";
        /// No command of that `type`.
        UnknownType = 104, "unknown_type";
        /// It is so already.
        Already = 105, "already";
        /// A bound was reached; the message names it.
        LimitExceeded = 106, "limit_exceeded";
        /// The frame is not what the command takes.
        BadRequest = 107, "bad_request";
        /// A feature that this server has switched off.
        NotAvailable = 108, "not_available";
        /// The token's time is over.
        TokenExpired = 109, "token_expired";
        /// No such message, user or item.
        NotFound = 110, "not_found";
        /// Too fast. Temporary.
        RateLimited = 111, "rate_limited";
        /// A cursor that is ahead of the log.
        UnrecoverableCursor = 112, "unrecoverable_cursor";
        /// Past capacity right now. Temporary.
        Busy = 113, "busy";
        /// The recipient's inbox is full.
        InboxFull = 115, "inbox_full";
        /// Somebody else was first.
        Conflict = 116, "conflict";
        /// The store does not take writes right now, or the outcome is unknown. Temporary.
        Degraded = 117, "degraded";
    }
);

impl ErrorCode {
    /// True when the same command may succeed later, unchanged.
    pub const fn is_temporary(self) -> bool {
        matches!(self, Self::Internal | Self::RateLimited | Self::Busy | Self::Degraded)
    }
}

codes!(
    /// Why a connection ended (RFC 6455 section 7.4).
    CloseCode {
        /// The session ended as it should.
        Normal = 1000, "normal";
        /// The peer goes away.
        GoingAway = 1001, "going_away";
        /// The peer broke RFC 6455.
        Protocol = 1002, "protocol_error";
        /// A binary message: this protocol is text.
        Unsupported = 1003, "unsupported_data";
        /// A text message that is not UTF-8.
        InvalidUtf8 = 1007, "invalid_utf8";
        /// A message over `message_bytes_max`.
        TooBig = 1009, "message_too_big";
        /// No token, or not a valid one, or a revoked one.
        InvalidToken = 4001, "invalid_token";
        /// The token is valid but does not allow this.
        Forbidden = 4003, "forbidden";
        /// Too many connections of this user.
        ConnectionLimit = 4005, "connection_limit";
        /// No protocol version in common.
        UnsupportedVersion = 4006, "unsupported_version";
        /// Too many bad commands in a row.
        TooManyErrors = 4007, "too_many_errors";
        /// The process is full.
        OverCapacity = 4100, "over_capacity";
        /// Kept sending past the rate limit.
        RateLimited = 4101, "rate_limited";
        /// Did not read what was sent.
        SlowConsumer = 4102, "slow_consumer";
        /// A fault of the server's.
        InternalError = 4103, "internal_error";
        /// Nothing arrived for two heartbeat intervals.
        NoHeartbeat = 4104, "no_heartbeat";
        /// The server is being stopped.
        Draining = 4200, "draining";
        /// The token's time is over: come back with a new one.
        TokenExpired = 4201, "token_expired";
        /// Events were lost on the way to this connection.
        Gap = 4202, "gap";
        /// The same device connected elsewhere: do not come back by yourself.
        Replaced = 4203, "replaced";
    }
);

/// A command's refusal, as it goes into an `error` reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of refusal.
    pub code: ErrorCode,
    /// One sentence for a person. Never holds a token or a message body.
    pub message: std::borrow::Cow<'static, str>,
    /// Milliseconds after which trying again makes sense; 0 when it does not.
    pub retry_after_ms: u32,
    /// For [`ErrorCode::Conflict`]: the version that stands.
    pub current: Option<u64>,
}

/// A name that is none: `bad_request`, with the reason.
impl From<BadName> for Refusal {
    fn from(bad: BadName) -> Self {
        Self::new(ErrorCode::BadRequest, bad.to_string())
    }
}

impl Refusal {
    /// A refusal with a message and nothing else.
    pub fn new(code: ErrorCode, message: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after_ms: 0, current: None }
    }

    /// The same refusal, to be tried again after `ms` milliseconds.
    #[must_use]
    pub fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = ms;
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_those_of_the_protocol_page() {
        assert_eq!(ErrorCode::ALL.len(), 17);
        assert_eq!(CloseCode::ALL.len(), 20);
        assert_eq!(ErrorCode::Conflict.to_string(), "116 conflict");
        assert_eq!(CloseCode::Replaced.to_string(), "4203 replaced");
        let temporary: Vec<u16> = ErrorCode::ALL.iter().filter(|c| c.is_temporary()).map(|c| c.number()).collect();
        assert_eq!(temporary, [100, 111, 113, 117]);
    }
}
