//! Services as the data path needs them: addresses that stand for several servers.
//!
//! A source of truth says what Services there are; [`ServiceTable`] is what becomes of that on one
//! node, and what the maps of the programs at the socket are filled from. A *server* is what
//! Kubernetes calls an endpoint and LVS a real server (`endpoint` and `backend` have other meanings
//! here: see the glossary).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The transports that a Service may have here. Others are left to kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

/// An address at which a Service is reached from inside of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    pub address: IpAddr,
    pub port: u16,
    pub transport: Transport,
}

/// Who serves a frontend, seen from one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Where connections go, each as likely as the others; of the frontend's address family. None:
    /// nobody serves, and a connection is refused.
    pub servers: BTreeSet<SocketAddr>,
    /// How long a client stays with its server after its last connection (`sessionAffinity`).
    pub affinity: Option<Duration>,
}

/// All Services of one node.
pub type ServiceTable = BTreeMap<Frontend, Serving>;
