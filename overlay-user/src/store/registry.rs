//! What the keeper asks of the place that holds leases: few, small, guarded operations.

use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use super::dir::Dir;
use super::entry::{Change, Entry, Snapshot};
use super::etcd::Etcd;
use super::{Error, Location};

/// A place that holds leases.
#[derive(Debug)]
pub(super) enum Registry {
    /// An etcd cluster.
    Etcd(Box<Etcd>),
    /// A directory.
    Dir(Dir),
}

/// Calls the same method of whichever registry it is.
macro_rules! ask {
    ($registry:expr, $($call:tt)*) => {
        match $registry {
            Registry::Etcd(etcd) => etcd.$($call)*.await,
            Registry::Dir(dir) => dir.$($call)*.await,
        }
    };
}

impl Registry {
    pub fn open(location: Location, ttl: Duration) -> Result<Self, Error> {
        Ok(match location {
            Location::Etcd(options) => Self::Etcd(Box::new(Etcd::new(options, ttl)?)),
            Location::Dir(path) => Self::Dir(Dir::new(path, ttl)),
        })
    }

    /// The network configuration's text.
    pub async fn config(&self) -> Result<String, Error> {
        ask!(self, config())
    }

    pub async fn list(&self) -> Result<Snapshot, Error> {
        ask!(self, list())
    }

    /// Creates an entry with a term, unless something with that key exists: then `None`.
    pub async fn create(&self, key: &str, value: &str) -> Result<Option<Entry>, Error> {
        ask!(self, create(key, value))
    }

    /// Gives the entry a new value and, unless it is a reservation, a full term. `None` if it is no
    /// longer as `held` says: somebody else has been at it.
    pub async fn replace(&self, held: &Entry, value: &str) -> Result<Option<Entry>, Error> {
        ask!(self, replace(held, value))
    }

    /// Renews the entry's term. False if the entry or its term is gone.
    pub async fn renew(&self, held: &Entry) -> Result<bool, Error> {
        ask!(self, renew(held))
    }

    /// Removes the entry. False if it is no longer as `held` says.
    pub async fn remove(&self, held: &Entry) -> Result<bool, Error> {
        ask!(self, remove(held))
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
