//! Addresses of pods on this node, kept on disk in the format of CNI's `host-local` plugin.
//!
//! One directory per network, `/var/lib/cni/networks/<network>/`, holds
//!
//! - one file per address in use, named by the address; its content is the container's identifier,
//!   CR LF, and the name of the interface in the container;
//! - `last_reserved_ip.<n>`, the address given out last from range `n`: allocation continues
//!   round-robin behind that address, so that an address is unused as long as possible between two
//!   pods;
//! - `lock`, on which every process takes `flock(2)`.
//!
//! Both plugins can work on one directory in turn. An address whose file cannot be read counts as
//! in use, and is given to no pod until garbage collection frees the address.

mod abandoned;
mod holder;
mod range;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::deadline::{self, Deadline};
use crate::files;
pub use abandoned::last_boot;
pub use holder::{Attachment, Holder};
pub use range::Range;

/// Why an address could not be allocated or freed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory, or a file in it, cannot be used.
    #[error(
        "cannot {action} {path}; check that the directory is writable and its disk is not full"
    )]
    Files {
        /// The action that failed, as a verb.
        action: &'static str,
        /// The path of the file or directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another process has held the lock during the whole wait.
    #[error("{path} is locked by {holder}, and was not free within {} s", .allowed.as_secs())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// The holder of the address.
        holder: String,
        /// The length of the wait.
        allowed: Duration,
    },
    /// Every address of the range has a file.
    #[error(
        "no free address in {range}: every one has a file in {dir}, written since the last boot; \
        delete pods, or let the runtime run CNI garbage collection to free what dead containers \
        left"
    )]
    Exhausted {
        /// The range that is used up.
        range: Range,
        /// The directory with the files.
        dir: PathBuf,
    },
    /// The requested address is one that no pod of this node can have.
    #[error(
        "asked for {address}, but this node's pods have addresses of {range}, the gateway's \
        left out"
    )]
    Outside {
        /// The address.
        address: IpAddr,
        /// The addresses that pods can have.
        range: Range,
    },
    /// The requested address is in use.
    #[error("asked for {address}, which is taken: {path} says by whom")]
    Taken {
        /// The address.
        address: IpAddr,
        /// File of the reservation.
        path: PathBuf,
    },
    /// The attachment holds an address of the range already.
    #[error("{address} is already allocated to {attachment}; a second ADD needs a DEL before it")]
    Duplicate {
        /// The address that the attachment holds.
        address: IpAddr,
        /// The attachment that requested another one.
        attachment: Attachment,
    },
    /// A subnet that is too small for a gateway and pods.
    #[error(
        "subnet {0} is too small to give pods addresses: it needs at least four, a /30 or a /126"
    )]
    TooSmall(ipnet::IpNet),
}

/// The directory of one network, locked against every other process for as long as this value
/// lives.
#[derive(Debug)]
pub struct AddressBook {
    dir: PathBuf,
    _lock: File,
}

/// Interval of the attempts to take the lock; no holder keeps the lock for long.
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// Name under which the file of a reservation is written before it is renamed.
const UNFINISHED: &str = ".unfinished";

impl AddressBook {
    /// Creates `dir` if it is missing, and locks it. Waits while another process holds the lock.
    ///
    /// # Errors
    ///
    /// [`Error::Files`] if the directory cannot be created or locked, [`Error::Locked`] if another
    /// process holds the lock until `deadline`.
    pub fn lock(dir: &Path, deadline: Deadline) -> Result<Self, Error> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Files {
                action,
                path,
                source,
            }
        };
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .map_err(failed("create", dir))?;
        let path = dir.join("lock");
        let lock = files::open_lock(&path).map_err(failed("open", &path))?;
        loop {
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(Self {
                        dir: dir.to_owned(),
                        _lock: lock,
                    });
                }
                Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
                Err(TryLockError::WouldBlock) if deadline.left().is_zero() => {
                    return Err(Error::Locked {
                        holder: deadline::holder(&path)
                            .unwrap_or_else(|| "a process that is not seen from here".to_owned()),
                        path,
                        allowed: deadline.allowed(),
                    });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_INTERVAL.min(deadline.left())),
            }
        }
    }

    /// Gives `attachment` the next free address of `range`, which is number `index` of the
    /// network's ranges.
    ///
    /// # Errors
    ///
    /// [`Error::Duplicate`] if `attachment` has an address there already, [`Error::Exhausted`] if
    /// no address is free, [`Error::Files`] if the disk fails; nothing is allocated in any of these
    /// cases.
    pub fn allocate(
        &self,
        range: &Range,
        index: usize,
        attachment: &Attachment,
    ) -> Result<IpAddr, Error> {
        self.is_first(range, attachment)?;
        let last_path = self.dir.join(format!("last_reserved_ip.{index}"));
        let last = fs::read_to_string(&last_path)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        for address in range.after(last) {
            if self.reserve(address, attachment)? {
                // Without this file nothing is lost but the time that addresses are unused between
                // two pods.
                if let Err(error) = fs::write(&last_path, address.to_string()) {
                    tracing::warn!(path = %last_path.display(), %error, "cannot write");
                }
                return Ok(address);
            }
        }
        Err(Error::Exhausted {
            range: range.clone(),
            dir: self.dir.clone(),
        })
    }

    /// Gives `attachment` this very address of `range`. The start of the next round-robin
    /// allocation does not change, as with `host-local`.
    ///
    /// # Errors
    ///
    /// [`Error::Outside`] if the range does not contain the address, [`Error::Taken`] if another
    /// attachment holds it, [`Error::Duplicate`] if `attachment` has another address there already,
    /// [`Error::Files`] if the disk fails.
    pub fn claim(
        &self,
        range: &Range,
        address: IpAddr,
        attachment: &Attachment,
    ) -> Result<IpAddr, Error> {
        if !range.contains(address) {
            return Err(Error::Outside {
                address,
                range: range.clone(),
            });
        }
        self.is_first(range, attachment)?;
        if self.reserve(address, attachment)? {
            return Ok(address);
        }
        let path = self.dir.join(address.to_string());
        Err(Error::Taken { address, path })
    }

    /// Whether a file in `dir` says that `attachment` holds `address`; read without the lock.
    #[must_use]
    pub fn is_held(dir: &Path, address: IpAddr, attachment: &Attachment) -> bool {
        Holder::read(&dir.join(address.to_string())).is(attachment)
    }

    /// Checks that `attachment` has no address of `range` yet.
    fn is_first(&self, range: &Range, attachment: &Attachment) -> Result<(), Error> {
        let held = self.held_by(attachment)?;
        match held.iter().find(|address| range.contains(**address)) {
            Some(&address) => Err(Error::Duplicate {
                address,
                attachment: attachment.clone(),
            }),
            None => Ok(()),
        }
    }

    /// All addresses in use and their holders, sorted by address.
    ///
    /// # Errors
    ///
    /// [`Error::Files`] if the directory cannot be listed. A file that cannot be read is no error,
    /// but a [`Holder::Unreadable`].
    pub fn entries(&self) -> Result<Vec<(IpAddr, Holder)>, Error> {
        let failed = |source| Error::Files {
            action: "list",
            path: self.dir.clone(),
            source,
        };
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(address) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            entries.push((address, Holder::read(&entry.path())));
        }
        entries.sort_by_key(|(address, _)| *address);
        Ok(entries)
    }

    /// The addresses that `attachment` holds.
    ///
    /// # Errors
    ///
    /// As [`AddressBook::entries`].
    pub fn held_by(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, Error> {
        let mut entries = self.entries()?;
        entries.retain(|(_, holder)| holder.is(attachment));
        Ok(entries.into_iter().map(|(address, _)| address).collect())
    }

    /// Frees all addresses of `attachment`; an attachment without addresses is no error.
    ///
    /// # Errors
    ///
    /// As [`AddressBook::entries`] and [`AddressBook::free`].
    pub fn release(&self, attachment: &Attachment) -> Result<(), Error> {
        self.held_by(attachment)?
            .into_iter()
            .try_for_each(|address| self.free(address))
    }

    /// Frees `address`, whoever holds it; an address that is free already is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Files`] if the address's file cannot be removed.
    pub fn free(&self, address: IpAddr) -> Result<(), Error> {
        let path = self.dir.join(address.to_string());
        files::remove(&path).map_err(|source| Error::Files {
            action: "remove",
            path,
            source,
        })
    }

    /// Writes the file of `address`; `false` if the file exists already.
    fn reserve(&self, address: IpAddr, attachment: &Attachment) -> Result<bool, Error> {
        let path = self.dir.join(address.to_string());
        // Because of the lock no other process creates the file meanwhile.
        if fs::symlink_metadata(&path).is_ok() {
            if Holder::read(&path) == Holder::Unreadable {
                tracing::warn!(
                    path = %path.display(),
                    "empty or corrupt; the address counts as taken until garbage collection"
                );
            }
            return Ok(false);
        }
        // The file appears whole or not at all, because a crash must not leave a file that names no
        // holder. A file that a crash leaves under the other name is overwritten by the next
        // reservation.
        let unfinished = self.dir.join(UNFINISHED);
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&unfinished)?;
            file.write_all(attachment.file_content().as_bytes())?;
            // Without this, a power failure could leave the name without the content.
            file.sync_data()?;
            fs::rename(&unfinished, &path)
        };
        match write() {
            Ok(()) => Ok(true),
            Err(source) => Err(Error::Files {
                action: "write",
                path,
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
