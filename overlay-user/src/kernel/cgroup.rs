//! The hierarchy of control groups that every process of the machine is in (version 2).
//!
//! The system mounts the hierarchy at `/sys/fs/cgroup` or, beside hierarchies of version 1, at
//! `/sys/fs/cgroup/unified`. A container sees its own part of the hierarchy, unless the host's
//! mount is mounted into the container.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Every group has this file but the root (Documentation/admin-guide/cgroup-v2.rst, "Core Interface
/// Files").
const NOT_IN_ROOT: &str = "cgroup.events";

/// Why programs cannot be attached to all sockets of the machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mounts cannot be read.
    #[error("read /proc/self/mountinfo: {0}")]
    Mounts(#[from] io::Error),
    /// No hierarchy of version 2 is mounted.
    #[error(
        "no cgroup2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified (a \
         container: mount the host's /sys/fs/cgroup into it)"
    )]
    NotMounted,
    /// Only a part of the hierarchy is mounted here.
    #[error(
        "{0} is not the root of the cgroup2 hierarchy: mount the host's /sys/fs/cgroup into this \
         container"
    )]
    NotRoot(PathBuf),
}

/// The directory of the root group.
///
/// # Errors
/// [`Error`].
pub fn root() -> Result<PathBuf, Error> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut seen = None;
    for mount in hierarchies(&mounts) {
        if !mount.join(NOT_IN_ROOT).exists() && mount.exists() {
            return Ok(mount);
        }
        seen = seen.or(Some(mount));
    }
    Err(seen.map_or(Error::NotMounted, Error::NotRoot))
}

/// The mount points of the hierarchy, or of a part of it.
fn hierarchies(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        let target = before.split(' ').nth(4)?;
        (kind == "cgroup2").then(|| Path::new(target).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_version_2_counts_wherever_it_is_mounted() {
        let mounts = "36 30 0:31 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                      37 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      38 30 0:32 /../.. /host/cgroup ro shared:1 master:2 - cgroup2 cgroup rw\n";
        let found: Vec<_> = hierarchies(mounts).collect();
        let wanted = ["/sys/fs/cgroup/unified", "/host/cgroup"].map(PathBuf::from);
        assert_eq!(found, wanted);
        assert_eq!(hierarchies("").count(), 0);
    }
}
