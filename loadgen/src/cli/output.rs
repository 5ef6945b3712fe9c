//! Where a run's figures go, and what is done with those of earlier runs.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::str::FromStr;

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

/// Tries a file that is written at the end, so that a long run is not lost to a typing error. Nothing is
/// changed by it.
///
/// # Errors
/// It cannot be written, in one sentence that names the flag.
pub fn check_writable(flag: &str, path: &Path) -> Result<(), String> {
    let is_new = !path.exists();
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|error| format!("{flag} {}: {error}", path.display()))?;
    if is_new {
        // It is made again when there is something to say.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

impl Output {
    /// Tries the files.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn check(&self) -> Result<(), String> {
        self.html.as_deref().map_or(Ok(()), |file| check_writable("--html", file))
    }
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
    #[arg(value_name = "A.json[,…]")]
    pub a: Side,
    /// Reports of the other side
    #[arg(value_name = "B.json[,…]")]
    pub b: Side,
}

/// The reports of one side. One argument, so that nothing that stands apart is taken for it.
#[derive(Debug, Clone)]
pub struct Side(pub Vec<PathBuf>);

impl FromStr for Side {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.split(',').filter(|file| !file.is_empty()).map(PathBuf::from).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_tried_before_the_run_and_left_alone() {
        let folder = std::env::temp_dir().join(format!("antiphon-load-output-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (fresh, there) = (folder.join("fresh"), folder.join("there"));
        fs::write(&there, "as it was").unwrap();
        assert_eq!((check_writable("--json", &fresh), check_writable("--json", &there)), (Ok(()), Ok(())));
        assert!(!fresh.exists() && fs::read_to_string(&there).unwrap() == "as it was");
        let html = Some(folder.join("no/such/folder.html"));
        assert!(Output { html, ..Output::default() }.check().unwrap_err().starts_with("--html"));
        assert!(check_writable("--hgrm", &folder).is_err(), "a folder is no file");
        fs::remove_dir_all(&folder).unwrap();
    }
}
