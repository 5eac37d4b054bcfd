//! The interface of the keeper to the registry of leases: few, small, guarded operations.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};

use super::dir::Dir;
use super::entry::{Entry, EntryChange, Given, Listing};
use super::etcd::Etcd;
use super::kube::Kube;
use super::news::{News, ThisNode};
use super::{Error, Location, Notice};

/// A registry that holds leases.
#[derive(Debug)]
pub(super) enum Registry {
    /// An etcd cluster.
    Etcd(Box<Etcd>),
    /// A directory.
    Dir(Dir),
    /// The Nodes of a Kubernetes cluster.
    Kube(Box<Kube>),
}

/// Calls the same method of the registry of each kind.
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

    /// The entry with the subnet that this node is given, where nodes do not choose (`None`). The
    /// entry's value is not judged yet.
    pub async fn assigned(&self) -> Result<Option<Given>, Error> {
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

    /// Publishes a notice for the registry's owner, in a registry that has a place for notices.
    pub async fn notify(&self, notice: &Notice) -> Result<(), Error> {
        match self {
            Self::Etcd(_) | Self::Dir(_) => Ok(()),
            Self::Kube(kube) => kube.notify(notice).await,
        }
    }

    /// The network configuration's text.
    pub async fn config(&self) -> Result<String, Error> {
        ask!(self, config())
    }

    pub async fn list(&self) -> Result<Listing, Error> {
        ask!(self, list())
    }

    /// Creates an entry with a term, unless something with that key exists or nodes do not choose:
    /// `None` in both cases.
    pub async fn create(&self, key: &str, value: &str) -> Result<Option<Entry>, Error> {
        match self {
            Self::Etcd(etcd) => etcd.create(key, value).await,
            Self::Dir(dir) => dir.create(key, value).await,
            Self::Kube(_) => Ok(None),
        }
    }

    /// Gives the entry a new value and, unless it is a reservation, a full term. `None` if the
    /// entry is no longer as `held`, because another writer has changed it.
    pub async fn replace(&self, held: &Entry, value: &str) -> Result<Option<Entry>, Error> {
        ask!(self, replace(held, value))
    }

    /// Renews the entry's term. False if the entry does not exist any more or its term has ended.
    pub async fn renew(&self, held: &Entry) -> Result<bool, Error> {
        match self {
            Self::Etcd(etcd) => etcd.renew(held).await,
            Self::Dir(dir) => dir.renew(held).await,
            Self::Kube(_) => Ok(true),
        }
    }

    /// Removes the entry. False if the entry is no longer as `held`, or if such an entry is removed
    /// together with its node only.
    pub async fn remove(&self, held: &Entry) -> Result<bool, Error> {
        match self {
            Self::Etcd(etcd) => etcd.remove(held).await,
            Self::Dir(dir) => dir.remove(held).await,
            Self::Kube(_) => Ok(false),
        }
    }

    /// Tells of every change, beginning with everything, until the receiver is dropped.
    pub async fn watch(&self, changes: mpsc::Sender<EntryChange>) {
        ask!(self, watch(changes));
    }

    /// Tells of every Service and EndpointSlice, beginning with everything, until the receiver is
    /// gone.
    pub async fn watch_services(&self, news: mpsc::Sender<News>) {
        ask!(self, watch_services(news));
    }

    /// This node's place, in a registry that knows the place; `None` in the channel until
    /// [`watch`](Self::watch) has reported the node.
    pub fn this_node(&self) -> Option<watch::Receiver<Option<ThisNode>>> {
        match self {
            Self::Etcd(_) | Self::Dir(_) => None,
            Self::Kube(kube) => Some(kube.this_node()),
        }
    }

    /// When a term that begins now ends.
    pub fn term_end(ttl: Duration) -> Option<SystemTime> {
        SystemTime::now().checked_add(ttl)
    }
}

#[cfg(test)]
mod tests;
