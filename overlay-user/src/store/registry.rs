//! What the keeper asks of the place that holds leases: few, small, guarded operations.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use super::dir::Dir;
use super::etcd::Etcd;
use super::kube::Kube;
use super::{Error, Location};
use crate::lease::RejectReason;

/// One lease as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Last part of the key: `10.5.34.0-24` if all is well.
    pub key: String,
    /// The value's bytes; whoever writes to the store decides what they are.
    pub value: Vec<u8>,
    /// When the entry last changed, in the registry's own count. Higher is later.
    pub revision: u64,
    /// What keeps the entry alive.
    pub term: Term,
    /// Name of the node that the entry is of, where the registry knows it.
    pub node: Option<String>,
    /// The address that an operator wants to be published in place of the node's own.
    pub public_ip: Option<Ipv4Addr>,
    /// Why the registry itself does not take the entry for a lease.
    pub refused: Option<RejectReason>,
}

impl Entry {
    /// An entry of which nothing else is known.
    pub fn new(key: String, value: impl Into<Vec<u8>>, revision: u64, term: Term) -> Self {
        Self {
            key,
            value: value.into(),
            revision,
            term,
            node: None,
            public_ip: None,
            refused: None,
        }
    }
}

/// What keeps an entry alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Term {
    /// Nothing is needed: an operator put it there, or the cluster assigned it.
    Reserved,
    /// Its owner's renewals. The number is the etcd lease that must be kept alive; zero elsewhere.
    Renewed(i64),
}

/// All entries at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// The entries, in no order.
    pub entries: Vec<Entry>,
    /// The registry's count at that moment.
    pub revision: u64,
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Change {
    /// All there is; what is not in it is gone.
    All(Snapshot),
    /// One entry is new or different.
    Put(Entry),
    /// One entry is gone, by deletion or because its term ended.
    Gone {
        /// The entry's key.
        key: String,
        /// When it went.
        revision: u64,
    },
    /// The registry answered, with nothing new.
    Alive,
    /// The registry does not answer; the watch goes on trying.
    Unreachable(String),
}

/// A place that holds leases.
#[derive(Debug)]
pub(super) enum Registry {
    /// An etcd cluster.
    Etcd(Box<Etcd>),
    /// A directory.
    Dir(Dir),
    /// The Nodes of a Kubernetes cluster.
    Kube(Box<Kube>),
}

/// Calls the same method of whichever registry it is.
macro_rules! ask {
    ($registry:expr, $($call:tt)*) => {
        match $registry {
            Registry::Etcd(etcd) => etcd.$($call)*.await,
            Registry::Dir(dir) => dir.$($call)*.await,
            Registry::Kube(kube) => kube.$($call)*.await,
        }
    };
}

impl Registry {
    pub fn open(location: Location, ttl: Duration) -> Result<Self, Error> {
        Ok(match location {
            Location::Etcd(options) => Self::Etcd(Box::new(Etcd::new(options, ttl)?)),
            Location::Dir(path) => Self::Dir(Dir::new(path, ttl)),
            Location::Kube(options) => Self::Kube(Box::new(Kube::new(options)?)),
        })
    }

    /// Whether nodes are given their subnets instead of choosing them.
    pub fn assigns(&self) -> bool {
        matches!(self, Self::Kube(_))
    }

    /// The entry with the subnet that this node is given, where nodes do not choose (`None`). Its value
    /// may say anything yet.
    pub async fn assigned(&self) -> Result<Option<Entry>, Error> {
        match self {
            Self::Etcd(_) | Self::Dir(_) => Ok(None),
            Self::Kube(kube) => kube.assigned().await.map(Some),
        }
    }

    /// The address that the registry's operator wants to be this node's.
    pub async fn node_public_ip(&self) -> Result<Option<IpAddr>, Error> {
        match self {
            Self::Etcd(_) | Self::Dir(_) => Ok(None),
            Self::Kube(kube) => kube.node_public_ip().await,
        }
    }

    /// The network configuration's text.
    pub async fn config(&self) -> Result<String, Error> {
        ask!(self, config())
    }

    pub async fn list(&self) -> Result<Snapshot, Error> {
        ask!(self, list())
    }

    /// Creates an entry with a term, unless something with that key exists or nodes do not choose:
    /// then `None`.
    pub async fn create(&self, key: &str, value: &str) -> Result<Option<Entry>, Error> {
        match self {
            Self::Etcd(etcd) => etcd.create(key, value).await,
            Self::Dir(dir) => dir.create(key, value).await,
            Self::Kube(_) => Ok(None),
        }
    }

    /// Gives the entry a new value and, unless it is a reservation, a full term. `None` if it is no
    /// longer as `held` says: somebody else has been at it.
    pub async fn replace(&self, held: &Entry, value: &str) -> Result<Option<Entry>, Error> {
        ask!(self, replace(held, value))
    }

    /// Renews the entry's term. False if the entry or its term is gone.
    pub async fn renew(&self, held: &Entry) -> Result<bool, Error> {
        match self {
            Self::Etcd(etcd) => etcd.renew(held).await,
            Self::Dir(dir) => dir.renew(held).await,
            Self::Kube(_) => Ok(true),
        }
    }

    /// Removes the entry. False if it is no longer as `held` says, or goes with its node only.
    pub async fn remove(&self, held: &Entry) -> Result<bool, Error> {
        match self {
            Self::Etcd(etcd) => etcd.remove(held).await,
            Self::Dir(dir) => dir.remove(held).await,
            Self::Kube(_) => Ok(false),
        }
    }

    /// Tells of every change, beginning with everything, until nobody listens.
    pub async fn watch(&self, changes: mpsc::Sender<Change>) {
        ask!(self, watch(changes));
    }

    /// When a term that begins now ends.
    pub fn term_end(ttl: Duration) -> Option<SystemTime> {
        SystemTime::now().checked_add(ttl)
    }
}
