//! The store of leases. One [`Store`] keeps this node's lease and knows every node's, in any kind
//! of registry.
//!
//! ```text
//! Store ── keeper: acquire, renew, republish, watch; the same for every registry
//!   └ Registry ── etcd    flannel's keys and values
//!               ├ dir     a directory with one small file per lease
//!               └ kube    Node objects: subnets are assigned, not chosen
//! ```
//!
//! Services come from the same registry, but only where a [`ServiceFollower`] runs.
//!
//! The keeper is level-triggered: it compares what the registry holds with what this node wants to
//! hold and mends the difference, whether a watch event, a renewal or a timer told it to look.

pub mod dir;
mod entry;
pub mod etcd;
mod keeper;
pub mod kube;
mod news;
mod registry;
mod services;
mod table;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use keeper::Store;
pub use services::{ServiceFollower, ServiceState};

use crate::config::net_conf::NetConfError;
use crate::lease::{AllocateError, Lease, Leases, Rejections};

/// flannel's lease time: the longest absence after which a node still finds its subnet.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The kind of store, and its address.
#[derive(Clone, Debug)]
pub enum Location {
    /// An etcd cluster.
    Etcd(etcd::Options),
    /// A directory on this machine.
    Dir(PathBuf),
    /// A Kubernetes cluster.
    Kube(kube::Options),
}

/// Everything known about leases at one moment. A clone is cheap, and what differs from an earlier
/// one is found by [`differences`](crate::shared_map::SharedMap::differences), however many moments
/// were missed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LeaseState {
    /// This node's lease; absent before [`Store::acquire`] and while a lost one could not be
    /// replaced.
    pub own: Option<Lease>,
    /// Why there is no lease, where [`Store::run`] could not take one.
    pub trouble: Option<String>,
    /// The other nodes' leases. Kept as they were while the store is unreachable.
    pub leases: Leases,
    /// Entries of the store that make no sense.
    pub rejected: Rejections,
    /// Whether `leases` has ever been complete. Once true it stays true.
    pub synced: bool,
    /// The time at which an earlier agent knew `leases` last, where the store has not answered this
    /// agent yet.
    pub as_of: Option<SystemTime>,
    /// Whether the store answers.
    pub store: StoreHealth,
}

/// Whether the store answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum StoreHealth {
    /// Not yet asked.
    #[default]
    Connecting,
    /// The store answers.
    Ok,
    /// The store does not answer. The leases known before stay in force.
    Unreachable {
        /// Since when.
        since: SystemTime,
        /// The error of the last attempt.
        error: String,
    },
}

/// A notice about this node for the store's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Pods of this node can be reached.
    Available,
    /// Leases cannot be kept.
    Unavailable {
        /// The kind of cause, in one word.
        reason: &'static str,
        /// The cause, for people.
        message: String,
    },
    /// Something that stops pods or slows them down.
    Event {
        /// Kind of the store, in one word.
        reason: &'static str,
        /// What happened, for people.
        message: String,
    },
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options make no sense, before anything was asked.
    #[error("the store's options are wrong: {0}")]
    Options(String),
    /// The store does not answer, or not in time. Worth another attempt.
    #[error("{call} failed: {message}")]
    Unreachable {
        /// What was asked of the store.
        call: String,
        /// What happened, with the cure where there is one.
        message: String,
    },
    /// The store refused the call.
    #[error("{call} was refused: {message}")]
    Refused {
        /// What was asked of the store.
        call: String,
        /// What the store said.
        message: String,
    },
    /// No network configuration has been written.
    #[error(
        "{0} does not exist; write the network configuration there, for example \
        {{\"Network\":\"10.244.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}"
    )]
    NoConfig(String),
    /// The network configuration cannot be used.
    #[error(transparent)]
    Config(#[from] NetConfError),
    /// The cluster has not given this node a subnet that it could use.
    #[error("node {node}: {why}")]
    NotAssigned {
        /// The node's name.
        node: String,
        /// What is missing or wrong, with the cure.
        why: String,
    },
    /// No subnet to take.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    /// Other nodes were faster, time and again.
    #[error("lost the race for a subnet {0} times; trying again later may help")]
    Contended(usize),
}

/// The network configuration's text, where it is in a file.
async fn config_file(path: &Path) -> Result<String, Error> {
    let read = tokio::fs::read_to_string(path).await;
    read.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::NoConfig(path.display().to_string()),
        _ => Error::Unreachable {
            call: format!("reading {}", path.display()),
            message: error.to_string(),
        },
    })
}
