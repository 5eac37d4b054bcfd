//! Writes and reads the file of a memory.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::libc;
use nix::unistd::geteuid;

use crate::files;

/// Largest size of the file in bytes, more than the Nodes of any cluster take. A larger file is
/// neither written nor read.
pub const LONGEST: u64 = 16 << 20;

/// Replaces the file in one step. Only its owner can read the file.
pub fn replace(path: &Path, json: &[u8]) -> io::Result<()> {
    if json.len() as u64 > LONGEST {
        files::remove(path)?;
        return Err(too_long());
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(json)?;
    file.persist(path)?;
    Ok(())
}

/// Reads a file that only root can have written.
pub fn read(path: &Path) -> io::Result<(Vec<u8>, Metadata)> {
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let about = file.metadata()?;
    if !about.is_file() || about.uid() != geteuid().as_raw() || about.mode() & 0o022 != 0 {
        let why = "it is not a file that its owner alone can write";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let mut json = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut json)?;
    if json.len() as u64 > LONGEST {
        return Err(too_long());
    }
    Ok((json, about))
}

fn too_long() -> io::Error {
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("more than {LONGEST} bytes"),
    )
}
