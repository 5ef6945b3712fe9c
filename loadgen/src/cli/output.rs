//! Where a run's figures go, and what is done with those of earlier runs.

use std::path::PathBuf;

use clap::Args;

use crate::assert::Assertion;

/// What is made of a report, fresh or saved.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Results")]
pub struct Output {
    /// Write a page with plots to this file: one HTML file that needs no other
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Fail unless all of these hold, such as 'p99<20ms,lost=0' (see EXAMPLES of --help)
    #[arg(long = "assert", value_name = "LIST", value_delimiter = ',')]
    pub asserts: Vec<Assertion>,
}

/// `report`
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A report that --json wrote
    pub file: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `compare`
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Reports of the one side, separated by commas: medians are compared
    #[arg(value_name = "A.json[,…]", value_delimiter = ',', num_args = 1, required = true)]
    pub a: Vec<PathBuf>,
    /// Reports of the other side
    #[arg(value_name = "B.json[,…]", value_delimiter = ',', num_args = 1, required = true)]
    pub b: Vec<PathBuf>,
}
