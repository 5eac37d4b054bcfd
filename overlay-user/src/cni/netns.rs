//! Other network namespaces.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::Error;

/// A network namespace of somebody else, held open.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Opens the namespace that `path` names, as `CNI_NETNS` does.
    ///
    /// # Errors
    ///
    /// [`Error::Netns`] if there is none, [`Error::OwnNetns`] if it is the one that this process runs in: a
    /// pod's interface set up there would cut the host off.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Netns {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let netns = Self {
            path: path.to_owned(),
            file,
        };
        netns.run(|| ())?;
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let own = fs::metadata("/proc/self/ns/net").map_err(failed)?;
        if id(own) == id(netns.file.metadata().map_err(failed)?) {
            return Err(Error::OwnNetns(path.to_owned()));
        }
        Ok(netns)
    }

    /// Runs `work` in the namespace, on a thread of its own: a thread that has changed its namespace is of no
    /// use afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::Netns`] if the kernel does not let us in.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let entered = thread::scope(|scope| {
            let guest = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            guest
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        entered.map_err(|errno: nix::Error| Error::Netns {
            path: self.path.clone(),
            source: io::Error::from(errno),
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
