//! The desired contents of the maps, as pure data.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use overlay_common::schema::{
    ABI_VERSION, CONFIG_PEERS_COMPLETE, CONFIG_VTEPS_INCOMPLETE, Config, ENDPOINT_ADDRESSES,
    Endpoint, MAX_PEERS, MAX_PODS, PEER_NEXT_HOP, POD_KERNEL_PATH, PeerEntry, PodEntry, Vtep,
};
use overlay_common::snapshot::Snapshot;
use overlay_common::vxlan::Tunnel;

use super::family::UserFamily;
use crate::backend;
use crate::mac::MacAddr;

/// A node, as far as its tables depend on it.
#[derive(Clone, Debug)]
pub struct TableInput {
    /// The overlay's network.
    pub network: IpNet,
    /// This node's subnet.
    pub subnet: IpNet,
    /// The NIC.
    pub underlay_ifindex: u32,
    /// The VXLAN device; zero where it opens all tunnels for the IP stack itself.
    pub vtep_ifindex: u32,
    /// This node's underlay address.
    pub vtep: IpAddr,
    /// MAC address of the VXLAN device.
    pub vtep_mac: MacAddr,
    /// MAC address of the bridge; zeros while there is none.
    pub bridge_mac: MacAddr,
    /// The bridge's address in this node's subnet, while it has one.
    pub gateway: Option<IpAddr>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub port: u16,
    /// The kernel's range of source ports, both ends included (`net.ipv4.ip_local_port_range`).
    pub source_ports: (u16, u16),
    /// `CONFIG_*` that the caller decides on.
    pub flags: u32,
    /// MAC address of the NIC.
    pub underlay_mac: MacAddr,
    /// The other nodes, and the path over the underlay to each.
    pub peers: Vec<(backend::Peer, UnderlayPath)>,
    /// Nodes whose kernel path is not complete yet: known as VTEPs, but not short-cut to.
    pub unserved: Vec<backend::Peer>,
    /// The pods of this node.
    pub pods: Vec<LocalPod>,
}

/// The path over the underlay to another node, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderlayPath {
    /// Longest inner IP packet that fits the path, in bytes.
    pub mtu: u32,
    /// MAC address of the next hop, where the kernel knows it.
    pub next_hop: Option<MacAddr>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// The host end of its veth pair.
    pub ifindex: u32,
    /// Address of the pod.
    pub address: IpAddr,
    /// MAC address of the pod.
    pub mac: MacAddr,
    /// The MTU of its interface.
    pub mtu: u32,
    /// Whether something on its veth forbids short cuts.
    pub kernel_path: bool,
    /// The runtime's identifier of its container.
    pub container: String,
}

impl LocalPod {
    /// The table entries of a pod with this address: by its device, and by its address.
    pub(super) fn entries<F: UserFamily>(
        &self,
        address: F::Addr,
        flags: u16,
    ) -> (Endpoint<F>, PodEntry) {
        let (mac, owner) = (self.mac.0, owner(&self.container));
        let endpoint = Endpoint {
            addresses: [address; ENDPOINT_ADDRESSES],
            mac,
            flags,
            owner,
        };
        let entry = PodEntry {
            ifindex: self.ifindex,
            mtu: self.mtu,
            mac,
            flags,
            owner,
        };
        (endpoint, entry)
    }
}

/// Something that the tables have no room or form for; the kernel path serves it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Omission {
    /// A subnet of another family, or too many.
    #[error("peer subnet {0} is left to the kernel path: no room in the fast path's table")]
    Peer(IpNet),
    /// A pod of another family, or one too many.
    #[error("pod {0} is left to the kernel path: no room in the fast path's table")]
    Pod(IpAddr),
    /// Two devices claim one address.
    #[error("pod {0} is claimed by two devices: left to the kernel path")]
    Duplicate(IpAddr),
}

impl Omission {
    /// The first few in words, and how many more there are: whoever may write leases can make
    /// thousands.
    #[must_use]
    pub fn summary(omissions: &[Self]) -> Option<String> {
        const NAMED: usize = 3;
        let named: Vec<_> = omissions.iter().take(NAMED).map(Self::to_string).collect();
        let more = omissions.len() - named.len();
        let more = (more > 0).then(|| format!("; and {more} more"));
        (!named.is_empty()).then(|| named.join("; ") + &more.unwrap_or_default())
    }
}

/// How many table entries one lease may take: a /16 among /24s.
const MAX_EXPANSION: usize = 256;

/// The tables that a node should have, and what found no place in them.
///
/// Peers are found by a hash on the masked address, one mask for all ([`peer_len`]); shorter
/// subnets take several entries.
#[must_use]
pub fn desired<F: UserFamily>(node: &TableInput) -> (Snapshot<F>, Vec<Omission>) {
    let mut tables = Snapshot::default();
    let mut omissions = Vec::new();
    let (Some((network, network_mask)), Some((subnet, subnet_mask)), Some(vtep)) = (
        F::from_net(&node.network),
        F::from_net(&node.subnet),
        F::from_ip(node.vtep),
    ) else {
        return (tables, omissions);
    };
    let lens = node.peers.iter().map(|(peer, _)| peer.subnet.prefix_len());
    let peer_len = peer_len(lens).unwrap_or(node.subnet.prefix_len());
    let mut flags = node.flags;
    for (peer, path) in &node.peers {
        let Some(entry) = peer_entry::<F, F>(node, vtep, peer, *path) else {
            omissions.push(Omission::Peer(peer.subnet));
            continue;
        };
        let known = add_vtep(&mut tables, entry.vtep);
        if !known {
            flags |= CONFIG_VTEPS_INCOMPLETE;
        }
        let room = MAX_PEERS as usize - tables.peers.len();
        let count = entries(peer.subnet.prefix_len(), peer_len).filter(|count| *count <= room);
        if !known || count.is_none() {
            omissions.push(Omission::Peer(peer.subnet));
            continue;
        }
        let parts = peer.subnet.subnets(peer_len).into_iter().flatten();
        let keys = parts.filter_map(|part| F::from_ip(part.network()));
        tables.peers.extend(keys.map(|key| (key, entry)));
    }
    for vtep in node
        .unserved
        .iter()
        .filter_map(|peer| F::from_ip(peer.vtep))
    {
        if !add_vtep(&mut tables, vtep) {
            flags |= CONFIG_VTEPS_INCOMPLETE;
        }
    }
    if omissions.is_empty() && node.unserved.is_empty() {
        flags |= CONFIG_PEERS_COMPLETE;
    }
    tables.config = Some(Config {
        abi: ABI_VERSION,
        flags,
        underlay_ifindex: node.underlay_ifindex,
        vtep_ifindex: node.vtep_ifindex,
        vni: node.vni,
        network,
        network_mask,
        subnet,
        subnet_mask,
        gateway: node.gateway.and_then(F::from_ip).unwrap_or(F::netmask(0)),
        peer_mask: F::netmask(peer_len),
        vtep,
        vtep_mac: node.vtep_mac.0,
        bridge_mac: node.bridge_mac.0,
        port: node.port,
        source_port_min: node.source_ports.0,
        source_port_count: node.source_ports.1 - node.source_ports.0,
        underlay_mac: node.underlay_mac.0,
    });
    add_pods(&mut tables, &node.pods, &mut omissions);
    (tables, omissions)
}

/// Notes that a node with this address has one more subnet; false where there is no room for
/// another node.
fn add_vtep<F: UserFamily>(tables: &mut Snapshot<F>, address: F::Addr) -> bool {
    if tables.vteps.len() >= MAX_PEERS as usize && !tables.vteps.contains_key(&address) {
        return false;
    }
    tables
        .vteps
        .entry(address)
        .or_insert(Vtep { subnets: 0 })
        .subnets += 1;
    true
}

fn add_pods<F: UserFamily>(
    tables: &mut Snapshot<F>,
    pods: &[LocalPod],
    omissions: &mut Vec<Omission>,
) {
    for pod in pods {
        let Some(address) = F::from_ip(pod.address) else {
            omissions.push(Omission::Pod(pod.address));
            continue;
        };
        if tables.pods.len() >= MAX_PODS as usize {
            omissions.push(Omission::Pod(pod.address));
            continue;
        }
        let flags = if pod.kernel_path { POD_KERNEL_PATH } else { 0 };
        let (endpoint, entry) = pod.entries::<F>(address, flags);
        tables.endpoints.insert(pod.ifindex, endpoint);
        if let Some(first) = tables.pods.insert(address, entry) {
            // Neither of the two devices gets a short cut, because nothing tells which of them is
            // right.
            omissions.push(Omission::Duplicate(pod.address));
            for ifindex in [first.ifindex, pod.ifindex] {
                if let Some(endpoint) = tables.endpoints.get_mut(&ifindex) {
                    endpoint.flags |= POD_KERNEL_PATH;
                }
            }
            tables.pods.insert(
                address,
                PodEntry {
                    flags: flags | POD_KERNEL_PATH,
                    ..entry
                },
            );
        }
    }
}

/// The number of a container in the tables: FNV-1a of its identifier, which the runtime draws at
/// random, and never zero.
fn owner(container: &str) -> u32 {
    const OFFSET_BASIS: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(PRIME);
    container.bytes().fold(OFFSET_BASIS, mix).max(1)
}

/// The prefix length that leaves fewest subnets without a place, of equals the shortest.
///
/// One long prefix among many short ones, which anybody who may write leases can make, shall not
/// cost those their places.
fn peer_len(lens: impl Iterator<Item = u8>) -> Option<u8> {
    let mut subnets = BTreeMap::<u8, usize>::new();
    lens.for_each(|len| *subnets.entry(len).or_default() += 1);
    let left_out = |peer_len: u8| {
        let mut room = MAX_PEERS as usize;
        let mut left_out = 0;
        for (len, count) in &subnets {
            let placed = entries(*len, peer_len).map_or(0, |each| (room / each).min(*count));
            room -= placed * entries(*len, peer_len).unwrap_or(0);
            left_out += count - placed;
        }
        left_out
    };
    subnets.keys().copied().min_by_key(|len| left_out(*len))
}

/// How many entries a subnet takes, if it can have any.
fn entries(len: u8, peer_len: u8) -> Option<usize> {
    let longer = peer_len.checked_sub(len)?;
    let count = 1_usize.checked_shl(longer.into())?;
    (count <= MAX_EXPANSION).then_some(count)
}

fn peer_entry<F: UserFamily, O: UserFamily>(
    node: &TableInput,
    source: O::Addr,
    peer: &backend::Peer,
    path: UnderlayPath,
) -> Option<PeerEntry<O>> {
    F::from_ip(peer.subnet.network())?;
    let vtep = O::from_ip(peer.vtep)?;
    if peer.way == backend::Way::Direct {
        let entry = PeerEntry::direct(vtep, path.mtu);
        return Some(with_next_hop(&entry, path.next_hop, node.underlay_mac));
    }
    let tunnel = Tunnel {
        source,
        destination: vtep,
        port: node.port,
        vni: node.vni,
        source_mac: node.vtep_mac.0,
        destination_mac: peer.mac().unwrap_or_default().0,
        outer_macs: path
            .next_hop
            .map_or_else(Default::default, |mac| (mac.0, node.underlay_mac.0)),
    };
    let flags = if path.next_hop.is_some() {
        PEER_NEXT_HOP
    } else {
        0
    };
    Some(PeerEntry {
        header: O::prepare(&tunnel, F::ETHERTYPE),
        vtep,
        mtu: path.mtu,
        flags,
    })
}

/// A peer's entry with another next hop; without prepared MAC addresses where the next hop is
/// unknown.
#[must_use]
pub fn with_next_hop<O: UserFamily>(
    peer: &PeerEntry<O>,
    next_hop: Option<MacAddr>,
    underlay_mac: MacAddr,
) -> PeerEntry<O> {
    let mut peer = *peer;
    let (destination, source) = match next_hop {
        Some(mac) => (mac.0, underlay_mac.0),
        None => Default::default(),
    };
    let header = peer.header.as_mut();
    header[..6].copy_from_slice(&destination);
    header[6..12].copy_from_slice(&source);
    peer.flags &= !PEER_NEXT_HOP;
    if next_hop.is_some() {
        peer.flags |= PEER_NEXT_HOP;
    }
    peer
}

#[cfg(test)]
mod tests;
