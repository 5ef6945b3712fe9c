//! How the process ends: the exit codes, and the sentence that goes with a failed start.

use std::fmt;
use std::process::ExitCode;

/// Exit codes. A supervisor may restart after 1 and 6; 2 to 5 need a person (or another port) first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything that was asked for was done; for `serve`: a graceful stop.
    Ok = 0,
    /// A failure while running, such as an fsync error.
    Failure = 1,
    /// A flag, a variable or the config file is wrong.
    Usage = 2,
    /// The machine does not allow it: kernel too old, no io_uring, too few descriptors.
    Environment = 3,
    /// A port is taken or may not be used.
    Port = 4,
    /// The data folder cannot be used: not writable, in use by another process, damaged, too new.
    DataDir = 5,
    /// The same, but it may be over by itself: the disk is full, another program has the database locked.
    NotNow = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why the process did not start (or a command was not done): one sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    /// What the process exits with.
    pub exit: Exit,
    /// Says what is wrong and, where it is known, what to do.
    pub message: String,
}

impl StartError {
    /// An error with its exit code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// A wrong flag, variable or file.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StartError {}
