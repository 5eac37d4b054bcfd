//! What the maps should hold, as pure data.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use overlay_common::schema::{
    ABI_VERSION, CONFIG_PEERS_COMPLETE, CONFIG_VTEPS_INCOMPLETE, Config, ENDPOINT_ADDRESSES,
    Endpoint, MAX_PEERS, MAX_PODS, PEER_NEXT_HOP, POD_KERNEL_PATH, PeerEntry, PodEntry, Vtep,
};
use overlay_common::snapshot::Snapshot;
use overlay_common::vxlan;

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

/// What the kernel knows of the path over the underlay to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderlayPath {
    /// Longest inner IP packet that fits it, in bytes.
    pub mtu: u32,
    /// MAC address of the next hop, where the kernel knows it.
    pub next_hop: Option<MacAddr>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// The host end of its veth pair.
    pub ifindex: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The MTU of its interface.
    pub mtu: u32,
    /// Whether something on its veth forbids short cuts.
    pub kernel_path: bool,
    /// The runtime's identifier of its container.
    pub container: String,
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
        let owner = owner(&pod.container);
        let endpoint = Endpoint {
            addresses: [address; ENDPOINT_ADDRESSES],
            mac: pod.mac.0,
            flags,
            owner,
        };
        tables.endpoints.insert(pod.ifindex, endpoint);
        let entry = PodEntry {
            ifindex: pod.ifindex,
            mtu: pod.mtu,
            mac: pod.mac.0,
            flags,
            owner,
        };
        if let Some(first) = tables.pods.insert(address, entry) {
            // Nobody can tell which is right: neither gets a short cut.
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

/// What stands for a container in the tables: FNV-1a of its identifier, which the runtime draws at
/// random, and never zero.
pub fn owner(container: &str) -> u32 {
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
    let tunnel = vxlan::Tunnel {
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

/// A peer's entry with another next hop, prepared by nobody where that is unknown.
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
mod tests {
    use super::*;
    use overlay_common::V4;
    use overlay_common::schema::{CONFIG_ACTIVE, PEER_DIRECT};

    fn node(peers: &[&str]) -> TableInput {
        let peer = |(i, subnet): (usize, &&str)| {
            let peer = backend::Peer {
                subnet: subnet.parse().expect("a subnet"),
                vtep: IpAddr::from([192, 168, (i >> 7) as u8, (i & 127) as u8 + 2]),
                way: backend::Way::Vxlan {
                    mac: MacAddr([2, 0, 0, 0, (i >> 7) as u8, (i & 127) as u8 + 2]),
                },
            };
            (
                peer,
                UnderlayPath {
                    mtu: 1450,
                    next_hop: Some(MacAddr([2, 0, 0, 0, 9, 9])),
                },
            )
        };
        TableInput {
            network: "10.244.0.0/16".parse().expect("a network"),
            subnet: "10.244.1.0/24".parse().expect("a subnet"),
            underlay_ifindex: 2,
            vtep: IpAddr::from([192, 168, 0, 1]),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            bridge_mac: MacAddr([2, 0, 0, 0, 1, 0]),
            gateway: Some(IpAddr::from([10, 244, 1, 1])),
            vni: 1,
            port: 8472,
            source_ports: (32768, 60999),
            flags: CONFIG_ACTIVE,
            underlay_mac: MacAddr([2, 0, 0, 0, 9, 1]),
            peers: peers.iter().enumerate().map(peer).collect(),
            unserved: Vec::new(),
            pods: Vec::new(),
        }
    }

    fn pod(ifindex: u32, last: u8) -> LocalPod {
        LocalPod {
            ifindex,
            address: IpAddr::from([10, 244, 1, last]),
            mac: MacAddr([2, 0, 0, 0, 2, last]),
            mtu: 1450,
            kernel_path: false,
            container: format!("container-{ifindex}"),
        }
    }

    #[test]
    fn equal_subnets_take_one_entry_each() {
        let (tables, omissions) = desired::<V4>(&node(&["10.244.2.0/24", "10.244.3.0/24"]));
        assert_eq!(omissions, []);
        assert_eq!(tables.peers.len(), 2);
        assert_eq!(tables.peers[&[10, 244, 3, 0]].vtep, [192, 168, 0, 3]);
        let config = tables.config.expect("a configuration");
        assert_eq!(config.peer_mask, [255, 255, 255, 0]);
        assert_eq!(config.flags, CONFIG_ACTIVE | CONFIG_PEERS_COMPLETE);
    }

    #[test]
    fn mixed_lengths_share_the_longest_mask() {
        let (tables, omissions) = desired::<V4>(&node(&["10.244.2.0/23", "10.244.4.0/25"]));
        assert_eq!(omissions, []);
        assert_eq!(
            tables.config.expect("a configuration").peer_mask,
            [255, 255, 255, 128]
        );
        assert_eq!(tables.peers.len(), 5);
        assert_eq!(tables.peers[&[10, 244, 3, 128]].vtep, [192, 168, 0, 2]);
    }

    #[test]
    fn a_subnet_without_room_leaves_the_table_incomplete() {
        let (tables, omissions) = desired::<V4>(&node(&["10.244.128.0/17", "10.244.4.0/30"]));
        assert_eq!(
            omissions,
            [Omission::Peer("10.244.4.0/30".parse().expect("a subnet"))]
        );
        assert_eq!(tables.vteps.len(), 2, "its node is known all the same");
        assert_eq!(
            tables.config.expect("a configuration").flags & CONFIG_PEERS_COMPLETE,
            0
        );
    }

    #[test]
    fn a_changed_next_hop_is_as_good_as_one_that_was_there() {
        let with = |next_hop| {
            let mut node = node(&["10.244.2.0/24"]);
            node.peers[0].1.next_hop = next_hop;
            let (tables, _) = desired::<V4>(&node);
            (tables.peers[&[10, 244, 2, 0]], node.underlay_mac)
        };
        let macs = [
            None,
            Some(MacAddr([2, 0, 0, 0, 9, 9])),
            Some(MacAddr([2; 6])),
        ];
        for (from, to) in macs.into_iter().flat_map(|from| macs.map(|to| (from, to))) {
            let ((old, mac), (new, _)) = (with(from), with(to));
            assert_eq!(with_next_hop(&old, to, mac), new, "{from:?} to {to:?}");
        }
    }

    #[test]
    fn thousands_of_omissions_are_a_line() {
        assert_eq!(Omission::summary(&[]), None);
        let omission = |last| Omission::Pod(IpAddr::from([10, 244, 1, last]));
        let text = Omission::summary(&(0..200).map(omission).collect::<Vec<_>>()).expect("a line");
        assert!(text.starts_with("pod 10.244.1.0 is left") && text.ends_with("; and 197 more"));
    }

    #[test]
    fn one_long_prefix_takes_nobodys_place() {
        let mut subnets: Vec<String> = (0..128)
            .flat_map(|high| (0..4).map(move |low| format!("10.{}.{low}.0/24", high + 1)))
            .collect();
        subnets.push("10.0.4.0/30".to_owned());
        let names: Vec<&str> = subnets.iter().map(String::as_str).collect();
        let (tables, omissions) = desired::<V4>(&node(&names));
        assert_eq!(
            omissions,
            [Omission::Peer("10.0.4.0/30".parse().expect("a subnet"))]
        );
        assert_eq!(tables.peers.len(), 512);
    }

    #[test]
    fn of_a_peer_on_the_link_only_the_mac_addresses_are_prepared() {
        let mut node = node(&["10.244.2.0/24"]);
        node.peers[0].0.way = backend::Way::Direct;
        let entry = |node: &TableInput| desired::<V4>(node).0.peers[&[10, 244, 2, 0]];
        let known = entry(&node);
        assert_eq!(known.flags, PEER_DIRECT | PEER_NEXT_HOP);
        assert_eq!(known.header[..6], [2, 0, 0, 0, 9, 9]);
        assert_eq!(known.header[6..12], node.underlay_mac.0);
        assert_eq!(known.header[12..], [0; 52]);
        node.peers[0].1.next_hop = None;
        assert_eq!(entry(&node).flags, PEER_DIRECT);
    }

    #[test]
    fn nodes_beyond_the_table_are_no_strangers() {
        let mut node = node(&["10.244.2.0/24"]);
        let (peer, _) = node.peers[0].clone();
        node.unserved = (0..MAX_PEERS)
            .map(|number| backend::Peer {
                vtep: std::net::Ipv4Addr::from_bits(0x0b00_0000 + number).into(),
                ..peer.clone()
            })
            .collect();
        let (tables, _) = desired::<V4>(&node);
        assert_eq!(tables.vteps.len(), MAX_PEERS as usize);
        let config = tables.config.expect("a configuration");
        assert_eq!(
            config.flags & CONFIG_VTEPS_INCOMPLETE,
            CONFIG_VTEPS_INCOMPLETE
        );
    }

    #[test]
    fn who_is_not_served_is_not_shut_out() {
        let mut node = node(&["10.244.2.0/24", "10.244.3.0/24"]);
        node.unserved.extend(node.peers.pop().map(|(peer, _)| peer));
        let (tables, _) = desired::<V4>(&node);
        assert_eq!((tables.peers.len(), tables.vteps.len()), (1, 2));
        let config = tables.config.expect("a configuration");
        assert_eq!(config.flags & CONFIG_PEERS_COMPLETE, 0);
    }

    #[test]
    fn interfaces_of_a_container_have_one_owner() {
        // Of the published test vectors of FNV-1a with 32 bits.
        assert_eq!((owner("a"), owner("foobar")), (0xe40c_292c, 0xbf9c_f968));
        let second = LocalPod {
            container: pod(7, 2).container,
            ..pod(8, 3)
        };
        let node = TableInput {
            pods: vec![pod(7, 2), second, pod(9, 4)],
            ..node(&[])
        };
        let (tables, _) = desired::<V4>(&node);
        let owners = [7, 8, 9].map(|ifindex| tables.endpoints[&ifindex].owner);
        assert_eq!(owners[0], owners[1]);
        assert_ne!(owners[0], owners[2]);
        for endpoint in tables.endpoints.values() {
            assert_eq!(tables.pods[&endpoint.addresses[0]].owner, endpoint.owner);
        }
    }

    #[test]
    fn two_devices_with_one_address_get_no_short_cut() {
        let node = TableInput {
            pods: vec![pod(7, 2), pod(8, 2), pod(9, 3)],
            ..node(&[])
        };
        let (tables, omissions) = desired::<V4>(&node);
        assert_eq!(
            omissions,
            [Omission::Duplicate(IpAddr::from([10, 244, 1, 2]))]
        );
        assert_eq!(tables.pods[&[10, 244, 1, 2]].flags, POD_KERNEL_PATH);
        assert_eq!(tables.endpoints[&7].flags, POD_KERNEL_PATH);
        assert_eq!(tables.endpoints[&9].flags, 0);
    }
}
