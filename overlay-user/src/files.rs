//! Helpers for files.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::unistd::geteuid;

/// Only the owner of a lock may open the lock.
const LOCK_MODE: u32 = 0o600;

/// Opens a file to be locked (`flock(2)`), and creates a missing one. Only the file's owner may
/// open the file, because every process that can open the file can hold the lock.
///
/// # Errors
/// The kernel's error.
pub fn open_lock(path: &Path) -> io::Result<File> {
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(LOCK_MODE)
        .open(path)?;
    let found = lock.metadata()?;
    // Earlier versions and other programs made the file readable for all. Another user's file is
    // left unchanged.
    if found.mode() & 0o077 != 0 && found.uid() == geteuid().as_raw() {
        lock.set_permissions(Permissions::from_mode(LOCK_MODE))?;
    }
    Ok(lock)
}

/// Removes a file; a missing file is no error.
///
/// # Errors
/// The kernel's error, except `ENOENT`.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_can_open_a_lock() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let mode = |path: &Path| fs::metadata(path).expect("a file").mode() & 0o777;
        open_lock(&path).expect("made");
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("changed");
        open_lock(&path).expect("opened");
        assert_eq!(mode(&path), 0o600, "one that an earlier version made");
    }
}
