//! `antiphon inspect`: what a data folder holds. Reads only, also while a server runs on it.

use clap::Args;

use super::Shared;
use crate::exit::{Exit, StartError};

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    shared: Shared,
}

impl Inspect {
    pub(super) fn run(&self) -> Result<Exit, StartError> {
        let _ = self.shared.flags();
        Err(StartError::new(Exit::Failure, "not yet"))
    }
}
