//! The ways to the peers: next hops and what fits.
//!
//! Routes are asked for in a round, peer by peer: whatever changes them starts one. What the neighbour table says of
//! their next hops changes all the time, and is one request for all.
//!
//! Where a route has several next hops, one of them is taken for all packets to a peer. The kernel's VXLAN does no
//! different: it caches the route of the first packet for each remote address and CPU (`dst_cache` in
//! `drivers/net/vxlan/vxlan_core.c`). Leaving such peers to `bpf_redirect_neigh` would be worse: for a given device it
//! always takes the first next hop (`fib_select_path` in `net/ipv4/fib_semantics.c`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::datapath::tables::Node as TablesOf;
use crate::kernel::next_hop::{Neighbour, Route};
use crate::kernel::xfrm::{self, Traffic};
use crate::kernel::{Error, Kernel};
use crate::mac::MacAddr;
use overlay_common::vxlan::OVERHEAD;

/// The ways to the peers, as of the last round.
#[derive(Default)]
pub struct Ways {
    routes: BTreeMap<IpAddr, Route>,
    /// Peers that the routes lead to by another device than the underlay's: the kernel path serves them.
    pub elsewhere: BTreeSet<IpAddr>,
    /// Why IPsec keeps all peers to the kernel path, which asks its policies; if it does.
    pub ipsec: Option<String>,
}

impl Ways {
    /// Finds the ways to the peers. Where that fails, the kernel looks the next hop up packet by packet. Peers that
    /// the routes lead to by another device are left to the kernel: out of the underlay's device, packets to them
    /// would be lost. Where the kernel does not tell, it is those of the last time.
    pub async fn find(&mut self, kernel: &Kernel, node: &mut TablesOf) {
        self.ipsec = ipsec(node).await;
        if self.ipsec.is_some() {
            let peers = std::mem::take(&mut node.peers).into_iter();
            node.unserved.extend(peers.map(|(peer, _)| peer));
        }
        let vteps: BTreeSet<_> = node.peers.iter().map(|(peer, _)| peer.vtep).collect();
        let routes = kernel.routes_by(node.underlay_ifindex, node.vtep, vteps.iter().copied());
        match routes.await {
            Ok(routes) => {
                let is_elsewhere = |vtep: &IpAddr| !routes.contains_key(vtep);
                self.elsewhere = vteps.into_iter().filter(is_elsewhere).collect();
                self.routes = routes;
            }
            Err(error) => {
                tracing::warn!("look for routes to the peers: {error}");
                self.routes.clear();
            }
        }
        let (there, here): (Vec<_>, _) = std::mem::take(&mut node.peers)
            .into_iter()
            .partition(|(peer, _)| self.elsewhere.contains(&peer.vtep));
        node.peers = here;
        node.unserved
            .extend(there.into_iter().map(|(peer, _)| peer));
        for (peer, way) in &mut node.peers {
            let route = self.routes.get(&peer.vtep);
            if let Some(mtu) = route.and_then(|route| route.mtu) {
                way.mtu = way.mtu.min(mtu.saturating_sub(OVERHEAD));
            }
        }
        node.underlay_mac = match kernel.device_mac(node.underlay_ifindex).await {
            Ok(Some(mac)) => mac,
            _ => MacAddr::default(),
        };
        self.follow(kernel, node).await;
    }

    /// Notes the next hops' MAC addresses, as the neighbour table has them by now. Returns whether any has changed.
    pub async fn follow(&mut self, kernel: &Kernel, node: &mut TablesOf) -> bool {
        let neighbours = kernel.neighbours_on(node.underlay_ifindex).await;
        let neighbours = neighbours.unwrap_or_else(|error| {
            tracing::warn!("look for next hops: {error}");
            BTreeMap::new()
        });
        // Among several next hops the kernel may take another (fib_multipath_use_neigh) and sends no event.
        let is_lost = |vtep: &IpAddr| {
            let route = self.routes.get(vtep);
            route.is_some_and(|route| !neighbours.contains_key(&route.next_hop))
        };
        let prepared = node.peers.iter().filter(|(_, way)| way.next_hop.is_some());
        let vteps = prepared.map(|(peer, _)| peer.vtep).filter(is_lost);
        match kernel
            .routes_by(node.underlay_ifindex, node.vtep, vteps)
            .await
        {
            Ok(routes) => self.routes.extend(routes),
            Err(error) => tracing::warn!("look for other next hops: {error}"),
        }
        let has_mac = node.underlay_mac != MacAddr::default();
        let mut changed = false;
        for (peer, way) in &mut node.peers {
            let route = self.routes.get(&peer.vtep).filter(|_| has_mac);
            let neighbour = route.and_then(|route| neighbours.get(&route.next_hop));
            let next_hop = neighbour.map(|neighbour| neighbour.mac);
            changed |= way.next_hop != next_hop;
            way.next_hop = next_hop;
        }
        changed
    }

    /// Lets the kernel confirm stale next hops: packets of the fast path do not remind it to.
    pub async fn confirm(&self, kernel: &Kernel, underlay_ifindex: u32) -> Result<(), Error> {
        let next_hops: BTreeSet<_> = self.routes.values().map(|route| route.next_hop).collect();
        let is_due = |(address, neighbour): &(IpAddr, Neighbour)| {
            neighbour.is_stale && next_hops.contains(address)
        };
        let neighbours = kernel.neighbours_on(underlay_ifindex).await?;
        for (address, _) in neighbours.into_iter().filter(is_due) {
            let confirmed = kernel.confirm_neighbour(underlay_ifindex, address);
            if let Err(error) = confirmed.await {
                // Gone meanwhile, perhaps; the others are asked for all the same.
                tracing::debug!("confirm {address}: {error}");
            }
        }
        Ok(())
    }
}

/// Why IPsec keeps packets between nodes from the fast path, if it does. Who cannot tell must not take them past it.
async fn ipsec(node: &TablesOf) -> Option<String> {
    let traffic = Traffic {
        own: node.vtep,
        peers: node.peers.iter().map(|(peer, _)| peer.vtep).collect(),
        port: node.port,
        network: node.network,
    };
    match xfrm::policies(&traffic).await {
        Ok(policies) => {
            let first = policies.first()?;
            let others = match policies.len() - 1 {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            Some(format!("IPsec policies exist ({first}{others})"))
        }
        Err(error) => Some(format!("IPsec policies cannot be read: {error}")),
    }
}
