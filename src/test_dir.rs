//! A folder for one unit test.

use std::path::PathBuf;

/// A folder of this process among the system's temporary ones; empty at first, gone with the value.
pub(crate) struct TestDir(pub PathBuf);

impl TestDir {
    /// `name` is no other test's.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("antiphon-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the folder for temporary files can be written");
        Self(path)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
