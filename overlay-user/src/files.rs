//! Small things about files.

use std::fs;
use std::io;
use std::path::Path;

/// Removes a file; a missing one is as good.
///
/// # Errors
/// What the kernel says, but `ENOENT`.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
