//! Which servers of a Service take a connection from this node, as kube-proxy chooses
//! (`CategorizeEndpoints` in its `pkg/proxy/topology.go`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;

use super::spec::{Hint, SliceServer};

/// The servers of one port of a Service, of one address family.
#[derive(Debug, Default)]
pub struct Choice(BTreeMap<SocketAddr, SliceServer>);

impl Choice {
    /// Adds a server. A server that moves from one EndpointSlice to another may be in both; then
    /// the entry in the better state counts: ready first, then on this node.
    pub fn add(&mut self, at: SocketAddr, server: SliceServer) {
        let worth = |server: &SliceServer| (server.is_ready, server.is_here);
        match self.0.entry(at) {
            Entry::Vacant(entry) => {
                entry.insert(server);
            }
            Entry::Occupied(mut known) => {
                if worth(&server) > worth(known.get()) {
                    known.insert(server);
                }
            }
        }
    }

    /// The servers for connections to any node: those that are ready and meant for this node, else
    /// those that are about to end.
    pub fn anywhere(&self) -> Box<[SocketAddr]> {
        let is_meant = self.meant();
        self.those(|it| it.is_ready && is_meant(it))
            .or_else(|| self.those(|it| !it.is_ready))
            .unwrap_or_default()
    }

    /// The servers for connections that must stay on this node. Hints do not count.
    pub fn here(&self) -> Box<[SocketAddr]> {
        self.those(|it| it.is_here && it.is_ready)
            .or_else(|| self.those(|it| it.is_here))
            .unwrap_or_default()
    }

    /// Hints count if every ready server has one and one of them means this node; those for nodes
    /// before those for zones.
    fn meant(&self) -> fn(&SliceServer) -> bool {
        let ready = || self.0.values().filter(|it| it.is_ready);
        let counts = |hint: fn(&SliceServer) -> Hint| {
            ready().all(|it| hint(it) != Hint::None) && ready().any(|it| hint(it) == Hint::Us)
        };
        if counts(|it| it.for_nodes) {
            return |it| it.for_nodes == Hint::Us;
        }
        if counts(|it| it.for_zones) {
            return |it| it.for_zones == Hint::Us;
        }
        |_| true
    }

    fn those(&self, wanted: impl Fn(&SliceServer) -> bool) -> Option<Box<[SocketAddr]>> {
        let those = self.0.iter().filter(|(_, server)| wanted(server));
        let those: Box<[_]> = those.map(|(at, _)| *at).collect();
        (!those.is_empty()).then_some(those)
    }
}
