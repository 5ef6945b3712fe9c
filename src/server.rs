//! Placeholder until the server lands: says that it is not there.

use crate::config::Config;
use crate::exit::{Exit, StartError};

/// # Errors
/// Always.
pub fn run(_config: Config) -> Result<Exit, StartError> {
    Err(StartError::new(Exit::Failure, "this build has no server yet"))
}
