//! The ways to the peers: next hops and what fits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use overlay_common::vxlan::OVERHEAD;
use overlay_user::datapath::tables::Node as TablesOf;
use overlay_user::kernel::Kernel;
use overlay_user::mac::MacAddr;
/// Finds the ways to the peers. Where that fails, the kernel looks the next hop up packet by packet.
pub async fn lead(kernel: &Kernel, node: &mut TablesOf) {
    let paths = match kernel.paths(node.underlay_ifindex, vteps(node)).await {
        Ok(paths) => paths,
        Err(error) => {
            tracing::debug!("look for next hops: {error}");
            BTreeMap::new()
        }
    };
    match kernel.device_mac(node.underlay_ifindex).await {
        Ok(Some(mac)) => node.underlay_mac = mac,
        _ => node.underlay_mac = MacAddr::default(),
    }
    let has_mac = node.underlay_mac != MacAddr::default();
    for (peer, way) in &mut node.peers {
        let path = paths.get(&peer.vtep);
        way.next_hop = path.and_then(|path| path.mac).filter(|_| has_mac);
        if let Some(mtu) = path.and_then(|path| path.mtu) {
            way.mtu = way.mtu.min(mtu.saturating_sub(OVERHEAD));
        }
    }
}

/// The other nodes' underlay addresses.
pub fn vteps(node: &TablesOf) -> BTreeSet<IpAddr> {
    node.peers.iter().map(|(peer, _)| peer.vtep).collect()
}
