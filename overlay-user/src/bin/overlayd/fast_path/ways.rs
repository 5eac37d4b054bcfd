//! The ways to the peers: next hops and what fits.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlay_common::vxlan::OVERHEAD;
use overlay_user::datapath::tables::Node as TablesOf;
use overlay_user::kernel::Kernel;
use overlay_user::mac::MacAddr;

/// Finds the ways to the peers. Where that fails, the kernel looks the next hop up packet by packet. Peers that
/// the routes lead to by another device are left to the kernel: out of the underlay's device, packets to them
/// would be lost. Returns those; `last` are those of the last time, which hold where the kernel does not tell.
pub async fn lead(kernel: &Kernel, node: &mut TablesOf, last: &[IpAddr]) -> Vec<IpAddr> {
    let paths = kernel.paths(node.underlay_ifindex, node.vtep, vteps(node));
    let paths = paths.await;
    if let Err(error) = &paths {
        tracing::warn!("look for next hops: {error}");
    }
    let is_here = |vtep: &IpAddr| match &paths {
        Ok(paths) => paths.contains_key(vtep),
        Err(_) => !last.contains(vtep),
    };
    let (here, there): (Vec<_>, Vec<_>) = std::mem::take(&mut node.peers)
        .into_iter()
        .partition(|(peer, _)| is_here(&peer.vtep));
    node.peers = here;
    let elsewhere = there.iter().map(|(peer, _)| peer.vtep).collect();
    node.unserved
        .extend(there.into_iter().map(|(peer, _)| peer));
    let paths = paths.unwrap_or_default();
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
    elsewhere
}

/// The other nodes' underlay addresses.
pub fn vteps(node: &TablesOf) -> BTreeSet<IpAddr> {
    node.peers.iter().map(|(peer, _)| peer.vtep).collect()
}
