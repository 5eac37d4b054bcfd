//! The contents that the maps should have, made from a round's view of the node.

use crate::backend::{self, Peer};
use crate::datapath::tables::{LocalPod, TableInput, UnderlayPath};
use crate::kernel::pods::PodLink;
use crate::mac::MacAddr;
use overlay_common::V4;
use overlay_common::schema::{CONFIG_DIRECT, POD_KERNEL_PATH};
use overlay_common::snapshot::Snapshot;

use super::super::View;

/// The tables with every pod that is not in `known` left to the kernel, and whether there are any
/// such pods.
pub(super) fn watch_newcomers(tables: &Snapshot<V4>, known: &Snapshot<V4>) -> (Snapshot<V4>, bool) {
    let mut watched = Snapshot {
        endpoints: tables.endpoints.clone(),
        pods: tables.pods.clone(),
        ..Snapshot::default()
    };
    let mut any = false;
    for (ifindex, endpoint) in &mut watched.endpoints {
        // A pod that leaves the kernel path now counts as a newcomer, because a round that ended
        // early may have left the pod there.
        let is_known = known.endpoints.get(ifindex).is_some_and(|old| {
            old.addresses == endpoint.addresses
                && old.flags & POD_KERNEL_PATH & !endpoint.flags == 0
        });
        if is_known {
            continue;
        }
        any = true;
        endpoint.flags |= POD_KERNEL_PATH;
        for address in &endpoint.addresses {
            if let Some(pod) = watched.pods.get_mut(address) {
                pod.flags |= POD_KERNEL_PATH;
            }
        }
    }
    (watched, any)
}

/// The pods that are up, by their addresses.
pub(super) fn local_pods<'a>(
    pods: impl IntoIterator<Item = &'a PodLink>,
    has_foreign_program: impl Fn(u32) -> bool,
) -> Vec<LocalPod> {
    let mut local = Vec::new();
    for pod in pods.into_iter().filter(|pod| pod.up) {
        let kernel_path = pod.has_foreign_qdisc || has_foreign_program(pod.ifindex);
        local.extend(pod.note.addresses.iter().map(|address| LocalPod {
            ifindex: pod.ifindex,
            address: *address,
            mac: pod.pod_mac,
            mtu: pod.mtu,
            kernel_path,
            container: pod.note.container.clone(),
        }));
    }
    local
}

/// The input of the tables with these peers and pods; next hops and flags are still to be added.
pub(super) fn table_input(
    view: &View<'_>,
    mac: MacAddr,
    peers: &[Peer],
    pods: Vec<LocalPod>,
) -> TableInput {
    let bridge = view.pods.bridge.as_ref();
    let vxlan = view.settings.config.vxlan();
    TableInput {
        network: view.settings.config.network(),
        subnet: view.subnet,
        underlay_ifindex: view.underlay.ifindex,
        vtep_ifindex: 0,
        vtep: view.underlay.public_address,
        vtep_mac: mac,
        bridge_mac: bridge.map(|bridge| bridge.mac).unwrap_or_default(),
        gateway: bridge.and_then(|bridge| {
            let mut addresses = bridge.addresses.iter().map(ipnet::IpNet::addr);
            addresses.find(|address| view.subnet.contains(address))
        }),
        vni: vxlan.map_or(0, |vxlan| vxlan.vni),
        port: vxlan.map_or(0, |vxlan| vxlan.port),
        source_ports: (32768, 60999),
        flags: match view.settings.backend.has_direct_ways() {
            true => CONFIG_DIRECT,
            false => 0,
        },
        underlay_mac: MacAddr::default(),
        peers: peers
            .iter()
            .map(|peer| {
                (
                    peer.clone(),
                    UnderlayPath {
                        mtu: match peer.way {
                            backend::Way::Vxlan { .. } => view.mtu,
                            backend::Way::Direct => view.underlay.mtu,
                        },
                        next_hop: None,
                    },
                )
            })
            .collect(),
        unserved: Vec::new(),
        pods,
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::schema::{ENDPOINT_ADDRESSES, Endpoint};

    use super::*;

    fn tables(flags: u16) -> Snapshot<V4> {
        let mut tables = Snapshot::default();
        let endpoint = Endpoint {
            addresses: [[10, 244, 1, 2]; ENDPOINT_ADDRESSES],
            mac: [2, 0, 0, 0, 0, 2],
            flags,
            owner: 1,
        };
        tables.endpoints.insert(7, endpoint);
        tables
    }

    #[test]
    fn a_pod_is_a_newcomer_until_it_was_short_cut_once() {
        let is_newcomer = |wanted, known: &Snapshot<V4>| watch_newcomers(&tables(wanted), known).1;
        assert!(is_newcomer(0, &Snapshot::default()));
        let (watched, _) = watch_newcomers(&tables(0), &Snapshot::default());
        assert!(
            is_newcomer(0, &watched),
            "the round ended before its flows were known"
        );
        assert!(!is_newcomer(0, &tables(0)));
        assert!(!is_newcomer(POD_KERNEL_PATH, &tables(POD_KERNEL_PATH)));
    }
}
