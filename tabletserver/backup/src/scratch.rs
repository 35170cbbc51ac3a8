//! Directories of files on their way.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A directory of files on their way; it goes with its user.
pub struct Scratch(
    /// Where it is.
    pub PathBuf,
);

impl Scratch {
    /// Makes an empty directory; what was there before goes.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(dir: PathBuf) -> io::Result<Self> {
        clear(&dir)?;
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }
}

fn clear(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is cleared by the next start, or by whoever makes it again.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
