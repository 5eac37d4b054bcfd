//! The end of a wait, and the holder of the lock that was waited for.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::stat::{major, minor};

/// A point in time by which an operation must end, and the operation's allowed duration.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    end: Instant,
    allowed: Duration,
}

impl Deadline {
    /// A deadline at `allowed` from now.
    #[must_use]
    pub fn after(allowed: Duration) -> Self {
        Self {
            end: Instant::now() + allowed,
            allowed,
        }
    }

    /// The time left; zero after the deadline.
    #[must_use]
    pub fn left(self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// The allowed duration, for messages.
    #[must_use]
    pub fn allowed(self) -> Duration {
        self.allowed
    }
}

/// The process that holds `flock(2)` on a file, as text for people.
///
/// `/proc/locks` shows the processes of this process-id namespace, and only file systems whose
/// device number is the one in the result of `stat(2)`.
#[must_use]
pub fn holder(path: &Path) -> Option<String> {
    let file = fs::metadata(path).ok()?;
    let id = format!(
        "{:02x}:{:02x}:{}",
        major(file.dev()),
        minor(file.dev()),
        file.ino()
    );
    let pid = owner(&fs::read_to_string("/proc/locks").ok()?, &id)?;
    // `/proc` may be mounted so that other users' processes are hidden.
    Some(match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}"),
    })
}

/// The process that holds the lock on a file, in the format of `/proc/locks` (proc(5)).
fn owner(locks: &str, id: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Lines of processes that wait for a lock have an arrow before the word FLOCK.
        let [_, "FLOCK", _, _, pid, file, ..] = words[..] else {
            return None;
        };
        pid.parse().ok().filter(|_| file == id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_told_from_those_who_wait() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 08:01:131090 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 8 08:01:131090 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 08:01:131090 0 EOF\n";
        assert_eq!(owner(locks, "08:01:131090"), Some(8));
        assert_eq!(owner(locks, "08:01:131091"), None);
    }

    #[test]
    fn our_own_lock_is_found() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().lock().expect("a lock");
        let holder = holder(file.path()).expect("a holder");
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
    }
}
