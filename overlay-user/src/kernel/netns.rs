//! Other network namespaces.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::privilege::{self, Capability};

/// Why a network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace {path}; {}", entering(.source))]
    Enter {
        /// The path of the namespace.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The namespace is the one that this process runs in.
    #[error("CNI_NETNS {0} is the host's own network namespace; it must be the container's")]
    Own(PathBuf),
}

/// The cure where a namespace cannot be entered.
fn entering(source: &io::Error) -> String {
    match privilege::missing(&[Capability::SysAdmin, Capability::NetAdmin]) {
        Some(missing) if source.kind() == io::ErrorKind::PermissionDenied => {
            format!("the plugin lacks {missing}")
        }
        _ => "the container may be gone".to_owned(),
    }
}

/// A foreign network namespace, held open.
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
    /// [`NetnsError::Enter`] if there is none, [`NetnsError::Own`] if the namespace is the one that
    /// this process runs in, because a pod's interface set up there would cut the host off.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Enter {
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
            return Err(NetnsError::Own(path.to_owned()));
        }
        Ok(netns)
    }

    /// Runs `work` in the namespace, on a separate thread, because a thread cannot be used for
    /// other work after it has changed its namespace.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Enter`] if the kernel refuses entry.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let entered = thread::scope(|scope| {
            let guest = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            guest
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        entered.map_err(|errno: nix::Error| NetnsError::Enter {
            path: self.path.clone(),
            source: io::Error::from(errno),
        })
    }
}

impl Netns {
    /// The number by which programs identify the namespace (`SO_NETNS_COOKIE`, Linux 5.14).
    ///
    /// # Errors
    ///
    /// [`NetnsError::Enter`] if the kernel refuses entry, or does not return the number.
    pub fn cookie(&self) -> Result<u64, NetnsError> {
        self.run(own_cookie)?.map_err(|source| NetnsError::Enter {
            path: self.path.clone(),
            source,
        })
    }
}

#[expect(unsafe_code, reason = "nix does not know the option")]
fn own_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of the number, and the
    // length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
