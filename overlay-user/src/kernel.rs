//! The edges where the kernel's network is changed: netlink, sysctl, packet filters.
//!
//! Every call has a deadline and every error names the call, its object and the kernel's errno.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use rtnetlink::Handle;
use tokio::runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub mod apply;
pub mod attributes;
pub mod captures;
pub mod cgroup;
pub mod cleanup;
pub mod conntrack;
mod dump;
pub mod echo;
pub mod fdb;
pub mod guard;
pub mod interface;
pub mod link;
pub mod links;
mod look;
pub mod monitor;
pub mod neighbour;
pub mod netns;
pub mod next_hop;
mod nftables;
pub mod nic;
pub mod observe;
pub mod pods;
pub mod policies;
mod questions;
pub mod route;
pub mod rules;
pub mod sysctl;
pub(crate) mod tool;
pub mod xfrm;
mod xtables;

use netns::{Netns, NetnsError};

use crate::deadline::Deadline;

pub use cleanup::cleanup;
pub use tool::ToolError;

/// How long the kernel may take to answer one netlink request or dump.
const NETLINK_DEADLINE: Duration = Duration::from_secs(10);

/// An error of a call to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused a request.
    #[error("{call} {object}: {source}{}", privilege(.source))]
    Refused {
        /// The netlink message, by its name in `linux/rtnetlink.h`.
        call: &'static str,
        /// What it was about.
        object: String,
        /// The errno.
        source: io::Error,
    },
    /// The answer was lost or does not fit the request.
    #[error("{call} {object}: {reason}")]
    Answer {
        /// The netlink message.
        call: &'static str,
        /// What it was about.
        object: String,
        /// The error that rtnetlink gives.
        reason: String,
    },
    /// The kernel did not answer in time: within 10 s, or before the deadline of the connection.
    #[error("{call} {object}: the kernel has not answered in time")]
    Deadline {
        /// The netlink message.
        call: &'static str,
        /// What it was about.
        object: String,
    },
    /// The VXLAN device cannot listen.
    #[error(
        "UDP port {port} is in use by another socket, so the VXLAN device cannot come up; \
         `ss -ulpn sport = :{port}` names it"
    )]
    PortTaken {
        /// The UDP port, host byte order.
        port: u16,
    },
    /// A network namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A required device does not exist.
    #[error("no device {0}")]
    NoDevice(String),
    /// A sysctl cannot be read or written.
    #[error("{call} {path}: {source}{}", writable(.path, .source))]
    Sysctl {
        /// `read` or `write`.
        call: &'static str,
        /// The file below `/proc/sys`.
        path: String,
        /// The errno.
        source: io::Error,
    },
}

/// The missing privilege where the kernel does not permit a call.
fn privilege(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; this needs CAP_NET_ADMIN",
        _ => "",
    }
}

/// The cure where `/proc/sys` is mounted read-only, as for a container that is not privileged.
fn writable(path: &str, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::ReadOnlyFilesystem {
        return String::new();
    }
    let name = path.trim_start_matches("/proc/sys/").replace('/', ".");
    format!(
        "; in a container without the right to: restart the pod, whose init container sets it, \
        or run `sysctl -w {name}=1` on the node"
    )
}

impl Error {
    /// The errno of a refusal.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Sysctl { source, .. } | Self::Socket(source) => {
                source.raw_os_error()
            }
            _ => None,
        }
    }

    fn from_rtnetlink(call: &'static str, object: &str, error: rtnetlink::Error) -> Self {
        let object = object.to_owned();
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Refused {
                call,
                object,
                source: message.to_io(),
            },
            other => Self::Answer {
                call,
                object,
                reason: other.to_string(),
            },
        }
    }
}

/// A netlink connection to the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Kernel {
    handle: Handle,
    task: JoinHandle<()>,
    /// Whether an answer did not come in time.
    is_late: AtomicBool,
    /// The deadline of all requests; none is sent afterwards.
    deadline: Option<Deadline>,
    look: look::Look,
}

impl Kernel {
    /// Opens a connection; its task runs on the current tokio runtime until this is dropped.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn connect() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        Ok(Self {
            handle,
            task: tokio::spawn(connection),
            is_late: AtomicBool::new(false),
            deadline: None,
            look: look::Look::default(),
        })
    }

    /// As [`Kernel::connect`], for work whose requests all share one deadline.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn connect_until(deadline: Deadline) -> Result<Self, Error> {
        let mut kernel = Self::connect()?;
        kernel.deadline = Some(deadline);
        Ok(kernel)
    }

    /// As [`Kernel::connect_until`], to another network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`]; [`Error::Netns`] if the namespace cannot be entered.
    pub fn connect_in(netns: &Netns, deadline: Deadline) -> Result<Self, Error> {
        let runtime = runtime::Handle::current();
        netns.run(move || {
            let _context = runtime.enter();
            Self::connect_until(deadline)
        })?
    }

    /// The time that the kernel has for the next answer.
    fn patience(&self) -> Duration {
        self.deadline.map_or(NETLINK_DEADLINE, |deadline| {
            deadline.left().min(NETLINK_DEADLINE)
        })
    }

    /// Whether the connection is of no further use: the connection has broken, or an answer is
    /// overdue, and the kernel begins no other dump on this socket before that answer is read.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.task.is_finished() || self.is_late.load(Ordering::Relaxed)
    }

    /// Runs one request under the deadline. After one late answer all further requests on this
    /// connection fail at once, because a round with a thousand requests to a stuck kernel shall
    /// not wait for each.
    async fn request<T>(
        &self,
        call: &'static str,
        object: &str,
        future: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, Error> {
        let patience = self.patience();
        // A future is polled once before its time is looked at, so that one out of time is not
        // begun.
        if !patience.is_zero() && !self.is_late.load(Ordering::Relaxed) {
            match timeout(patience, future).await {
                Ok(result) => {
                    return result.map_err(|error| Error::from_rtnetlink(call, object, error));
                }
                Err(_) => self.is_late.store(true, Ordering::Relaxed),
            }
        }
        Err(Error::Deadline {
            call,
            object: object.to_owned(),
        })
    }

    /// Collects one dump under the deadline. The request is on its way when the stream is made, and
    /// the kernel refuses another dump on the same socket until this one is read to its end
    /// (`EBUSY`).
    async fn dump<T>(
        &self,
        call: &'static str,
        object: &str,
        stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
    ) -> Result<Vec<T>, Error> {
        self.request(call, object, stream.try_collect()).await
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes "no such object" for success, because another process may have removed the object first.
fn gone_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    use nix::libc::{EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH};
    match result {
        Err(error) if matches!(error.errno(), Some(ENOENT | ESRCH | ENODEV | EADDRNOTAVAIL)) => {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_asked_after_the_deadline() {
        let in_time = Deadline::after(Duration::from_secs(60));
        let kernel = Kernel::connect_until(in_time).expect("a socket");
        assert!(kernel.find_link("lo").await.expect("an answer").is_some());
        let kernel = Kernel::connect_until(Deadline::after(Duration::ZERO)).expect("a socket");
        let error = kernel.find_link("lo").await.expect_err("too late");
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_is_none() {
        let kernel = Kernel::connect().expect("a socket");
        assert!(
            kernel
                .find_link("no-such")
                .await
                .expect("an answer")
                .is_none()
        );
    }
}
