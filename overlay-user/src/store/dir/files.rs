//! The files of a directory of leases, under its lock. Blocking.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::libc;

use crate::files;
use crate::store::entry::{Entry, Term};

/// How long to wait for the lock, and between two attempts.
const DEADLINE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);
/// Longest content of a lease's file, in bytes. A longer content is cut, and then refused as
/// malformed.
const LONGEST: u64 = 64 * 1024;
const SUFFIX: &str = ".json";

/// The directory, locked until this value is dropped.
pub(super) struct Files {
    path: PathBuf,
    ttl: Duration,
    _lock: File,
}

/// A lease's file.
pub(super) struct LeaseFile {
    pub key: String,
    value: Vec<u8>,
    term: Term,
}

impl LeaseFile {
    pub fn into_entry(self, revision: u64) -> Entry {
        Entry::new(self.key, self.value, revision, self.term)
    }
}

impl Files {
    /// Takes the lock, within [`DEADLINE`].
    pub fn lock(path: &Path, ttl: Duration) -> io::Result<Self> {
        fs::create_dir_all(path.join(directory(Term::Renewed(0))))?;
        let lock = files::open_lock(&path.join("lock"))?;
        let begun = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(Self {
                        path: path.into(),
                        ttl,
                        _lock: lock,
                    });
                }
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if begun.elapsed() > DEADLINE => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "another process has held the file \"lock\" for 5 s; `fuser` names it",
                    ));
                }
                Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
            }
        }
    }

    /// All leases that have not ended.
    pub fn scan(&self) -> io::Result<Vec<LeaseFile>> {
        let mut found = Vec::new();
        let mut keys = HashSet::new();
        for term in [Term::Reserved, Term::Renewed(0)] {
            let listing = match fs::read_dir(self.path.join(directory(term))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                listing => listing?,
            };
            for file in listing {
                let name = file?.file_name();
                let Some(key) = key(&name) else {
                    continue;
                };
                if keys.contains(key) {
                    continue;
                }
                if let Some(value) = self.read(key, term, true)? {
                    keys.insert(key.to_owned());
                    found.push(LeaseFile {
                        key: key.to_owned(),
                        value,
                        term,
                    });
                }
            }
        }
        Ok(found)
    }

    /// Whether the entry's file is still as `held`, even if its term has ended meanwhile: no other
    /// node has taken the lease.
    pub fn holds(&self, held: &Entry) -> io::Result<bool> {
        Ok(self
            .read(&held.key, held.term, false)?
            .is_some_and(|value| value == held.value))
    }

    /// Replaces the file in one step, which also begins a new term.
    pub fn write(&self, key: &str, term: Term, value: &[u8]) -> io::Result<()> {
        let path = self.file(key, term);
        let mut file = tempfile::Builder::new()
            .prefix(".")
            .tempfile_in(self.path.join(directory(term)))?;
        file.write_all(value)?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }

    /// Begins a new term.
    pub fn touch(&self, key: &str) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .open(self.file(key, Term::Renewed(0)))?
            .set_modified(SystemTime::now())
    }

    pub fn remove(&self, held: &Entry) -> io::Result<()> {
        fs::remove_file(self.file(&held.key, held.term))
    }

    fn file(&self, key: &str, term: Term) -> PathBuf {
        self.path
            .join(directory(term))
            .join(format!("{key}{SUFFIX}"))
    }

    /// The content of a lease's file; nothing if there is none, or if only leases that have not
    /// ended are wanted and this one has.
    fn read(&self, key: &str, term: Term, current: bool) -> io::Result<Option<Vec<u8>>> {
        let Some((file, metadata)) = open(&self.file(key, term))? else {
            return Ok(None);
        };
        if metadata.is_dir() && term != Term::Reserved {
            // No lease can be put in its place: an entry that makes no sense, and holds its subnet.
            return Ok(Some(Vec::new()));
        }
        // A time in the future counts as now.
        let age = metadata.modified()?.elapsed().unwrap_or_default();
        if !metadata.is_file() || (current && term != Term::Reserved && age > self.ttl) {
            return Ok(None);
        }
        content(file).map(Some)
    }
}

/// Opens the file at a path; `None` if there is none that could ever be read.
pub(super) fn open(path: &Path) -> io::Result<Option<(File, Metadata)>> {
    // Non-blocking, lest a pipe put there keep the agent waiting.
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
    {
        Err(error) if is_no_file(&error) => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    Ok(Some((file, metadata)))
}

/// The content of a file, up to [`LONGEST`].
pub(super) fn content(file: File) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    file.take(LONGEST).read_to_end(&mut value)?;
    // People end files with a line feed.
    value.truncate(value.trim_ascii_end().len());
    Ok(value)
}

/// The key that a file's name stands for; none for other files, and for hidden ones: replacements
/// that are still being written.
pub(super) fn key(name: &OsStr) -> Option<&str> {
    let name = name.to_str().filter(|name| !name.starts_with('.'))?;
    name.strip_suffix(SUFFIX)
}

/// Whether there is nothing at a path that could ever be read: nothing at all, a link that leads
/// nowhere (`ENOTDIR`, `ELOOP`, `ENAMETOOLONG`), a socket or a device (`ENXIO`, `ENODEV`). One such
/// name must not hide the leases beside it; a failing disk must not look like leases that ended.
fn is_no_file(error: &io::Error) -> bool {
    const NO_FILE: [i32; 6] = [
        libc::ENOENT,
        libc::ENOTDIR,
        libc::ELOOP,
        libc::ENAMETOOLONG,
        libc::ENXIO,
        libc::ENODEV,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| NO_FILE.contains(&errno))
}

/// The directory for entries of this term.
pub(super) fn directory(term: Term) -> &'static str {
    match term {
        Term::Reserved => "static",
        Term::Renewed(_) => "subnets",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long, so that the time that a test takes does not count.
    const TTL: Duration = Duration::from_secs(2 * 60 * 60);
    const KEY: &str = "10.3.1.0-24";

    #[test]
    fn a_lease_ends_with_its_term_and_a_reservation_never() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = Files::lock(directory.path(), TTL).expect("the lock");
        fs::create_dir(directory.path().join("static")).expect("made");
        for term in [Term::Renewed(0), Term::Reserved] {
            let held = Entry::new(KEY.to_owned(), "value", 1, term);
            files.write(KEY, term, b"value").expect("written");
            let file = File::options().write(true).open(files.file(KEY, term));
            let file = file.expect("the file");
            let is_listed = || !files.scan().expect("a list").is_empty();
            for (age, is_current) in [(TTL / 2, true), (TTL + TTL / 2, false)] {
                let written = SystemTime::now() - age;
                file.set_modified(written).expect("aged");
                assert_eq!(
                    is_listed(),
                    is_current || term == Term::Reserved,
                    "{term:?}"
                );
                assert!(files.holds(&held).expect("an answer"), "nobody took it");
            }
            if term != Term::Reserved {
                files.touch(KEY).expect("a new term");
                assert!(is_listed());
            }
            files.remove(&held).expect("removed");
            assert!(!is_listed() && !files.holds(&held).expect("an answer"));
        }
    }
}
