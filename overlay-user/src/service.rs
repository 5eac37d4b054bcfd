//! Services as the data path needs them: addresses that stand for several servers.
//!
//! A registry holds the Services; [`ServiceTable`] is the table that one node makes of them, and
//! the maps of the programs at the socket are filled from that table. A *server* is what Kubernetes
//! calls an endpoint and LVS a real server (`endpoint` and `backend` have other meanings here: see
//! the glossary).

pub mod api;
mod catalog;
mod choice;
mod claims;
mod judge;
mod name;
mod offers;
pub mod refused;
mod spec;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use catalog::{Catalog, Refusals};
pub use judge::{Refusal, Role};
pub use name::{Kind, ObjectName, Subject};
pub use spec::Locality;

use crate::shared_map::SharedMap;

/// The transports that a Service may have here. Others are left to kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceTransport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// An address at which a Service is reached from inside of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The address: of no host, or this node's (a node port).
    pub address: IpAddr,
    /// The port; never zero.
    pub port: u16,
    /// The transport.
    pub transport: ServiceTransport,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            ServiceTransport::Tcp => "TCP",
            ServiceTransport::Udp => "UDP",
        };
        let address = SocketAddr::new(self.address, self.port);
        write!(f, "{address}/{transport}")
    }
}

/// The servers of a frontend, seen from one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The servers, chosen with equal probability: of the frontend's address family, sorted, each
    /// once. Without any, connections are left to kube-proxy.
    pub servers: Box<[SocketAddr]>,
    /// Whether and how a client stays with its server (`sessionAffinity`).
    pub affinity: Option<SessionAffinity>,
}

/// How a client stays with its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionAffinity {
    /// The time for which affinity lasts after the client's last connection.
    pub lasts: Duration,
    /// Number of the Service's port: all frontends of one port share what is remembered, and no
    /// others, as kube-proxy's lists of clients are those of a port's endpoints.
    pub port_id: u64,
}

/// All Services of one node. What differs from an earlier table is found by
/// [`differences`](SharedMap::differences), at a cost that does not depend on what stayed;
/// frontends of one Service share their [`Serving`].
pub type ServiceTable = SharedMap<Frontend, Arc<Serving>>;

#[cfg(test)]
mod tests;
