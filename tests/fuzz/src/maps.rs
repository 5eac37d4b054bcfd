//! What stands in the pinned maps, which another version or another program may have written: the
//! decision works on any of it.

use bytemuck::{AnyBitPattern, pod_read_unaligned};
use overlay_common::decide::{from_network, from_pod, leaving, mark, sending};
use overlay_common::packet::{ETHERNET_LEN, Frame};
use overlay_common::schema::{Config, Endpoint, FlowKey, PeerEntry, PodEntry, Vtep};
use overlay_common::snapshot::Snapshot;
use overlay_common::{Hook, V4, vxlan};
use overlay_user::datapath::family::UserFamily as _;

/// The bytes of a value of each table, then a packet.
pub fn map_dump(data: &[u8]) {
    let mut rest = data;
    let config: Config<V4> = take(&mut rest);
    let endpoint: Endpoint<V4> = take(&mut rest);
    let pod: PodEntry = take(&mut rest);
    let peer: PeerEntry<V4> = take(&mut rest);
    let flow: FlowKey<V4> = take(&mut rest);
    let [subnet, vtep, address]: [[u8; 4]; 3] = take(&mut rest);
    let tables = Snapshot::<V4> {
        config: Some(config),
        endpoints: [(7, endpoint)].into(),
        pods: [(address, pod)].into(),
        peers: [(subnet, peer)].into(),
        vteps: [(vtep, Vtep { subnets: 1 })].into(),
        flows: [flow].into(),
        leases_are_stale: address[3] % 2 == 1,
    };

    for mask in [config.network_mask, config.subnet_mask, config.peer_mask] {
        assert!(V4::prefix_len(mask) <= 32);
    }
    let last = u32::from(config.source_port_min) + u32::from(config.source_port_count);
    for hash in [0, u32::MAX, u32::from_ne_bytes(address)] {
        let port = vxlan::source_port(hash, config.source_port_min, config.source_port_count);
        let in_range = (u32::from(config.source_port_min)..=last).contains(&u32::from(port));
        assert!(in_range || last > u32::from(u16::MAX), "{port}");
    }
    let mut packet = Frame::new(rest);
    for ifindex in [7, 0] {
        for gso_size in [0, pod.mtu] {
            (packet.ifindex, packet.gso_size) = (ifindex, gso_size);
            let _ = from_pod::<V4, V4, _, _>(&packet, &tables);
            let _ = from_network::<V4, V4, _, _>(&packet, &tables);
            for hook in [Hook::PodOut, Hook::VtepOut] {
                for handed_over in [0, mark::<V4, _>(&packet, ETHERNET_LEN)] {
                    let _ = leaving::<V4, V4, _, _>(&packet, &tables, hook, handed_over);
                    let _ = sending::<V4, V4, _, _>(&packet, &tables, handed_over);
                }
            }
        }
    }
}

/// The next value; zeros where the bytes end.
fn take<T: AnyBitPattern>(rest: &mut &[u8]) -> T {
    let (value, behind) = rest.split_at(size_of::<T>().min(rest.len()));
    *rest = behind;
    let mut bytes = value.to_vec();
    bytes.resize(size_of::<T>(), 0);
    pod_read_unaligned(&bytes)
}
