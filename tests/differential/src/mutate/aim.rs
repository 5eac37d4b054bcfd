//! Packets that the fast path would carry, for any tables: what is changed about them afterwards is
//! what decides.

use overlay_common::schema::Config;
use overlay_common::{Family as _, Hook, V4};
use rand::RngExt as _;

use super::layout::{self, Layer};
use super::{Mutator, host};
use overlay_cases::world::{NIC, NIC_MAC, World};
use overlay_common::visit::Visit;

impl Mutator {
    /// Gives a packet the addresses that it needs to go the short way. What is not there stays as
    /// it is.
    pub(super) fn aim(&mut self, visit: &mut Visit, world: &World) {
        let port = world.config.map_or(0, |config| config.port);
        let layers = layout::layers(&visit.frame, port);
        match (visit.hook, &layers[..]) {
            (Hook::PodIn, [layer, ..]) => self.aim_from_pod(visit, world, *layer),
            (Hook::NetIn | Hook::NetXdp, [outer, inner, ..]) => {
                self.aim_from_network(visit, world, *outer, *inner)
            }
            (Hook::PodOut | Hook::VtepOut, [layer, ..]) => self.aim_leaving(visit, world, *layer),
            _ => {}
        }
        layout::mend(&mut visit.frame, port);
    }

    fn aim_from_pod(&mut self, visit: &mut Visit, world: &World, layer: Layer) {
        let endpoints: Vec<_> = world.endpoints.iter().collect();
        let (Some(config), Some((ifindex, endpoint))) = (world.config, self.pick(&endpoints))
        else {
            return;
        };
        visit.ifindex = **ifindex;
        let frame = &mut visit.frame;
        set(frame, layer.ethernet + 6, endpoint.mac);
        let pods: Vec<_> = world.pods.iter().collect();
        let (mac, destination) = match self.pick(&pods) {
            Some((address, pod)) if self.chance(1, 3) => (pod.mac, **address),
            _ => (config.bridge_mac, self.in_some_peer(world)),
        };
        set(frame, layer.ethernet, mac);
        if let Some(ip) = layer.ip {
            set(frame, ip + 12, endpoint.addresses[0]);
            set(frame, ip + 16, destination);
        }
    }

    fn aim_from_network(&mut self, visit: &mut Visit, world: &World, outer: Layer, inner: Layer) {
        let peers: Vec<_> = world.peers.iter().collect();
        let pods: Vec<_> = world.pods.keys().collect();
        let (Some(config), Some((subnet, peer)), Some(pod)) =
            (world.config, self.pick(&peers), self.pick(&pods))
        else {
            return;
        };
        visit.ifindex = NIC;
        let frame = &mut visit.frame;
        set(frame, outer.ethernet, NIC_MAC);
        if let Some(ip) = outer.ip {
            set(frame, ip + 12, peer.vtep);
            set(frame, ip + 16, config.vtep);
        }
        if let Some(vxlan) = outer.vxlan {
            let [_, a, b, c] = config.vni.to_be_bytes();
            set(frame, vxlan, [8, 0, 0, 0, a, b, c, 0]);
        }
        set(frame, inner.ethernet, config.vtep_mac);
        if let Some(ip) = inner.ip {
            let number = self.random.random();
            let from = under(**subnet, config.peer_mask, number);
            set(frame, ip + 12, from);
            set(frame, ip + 16, **pod);
        }
    }

    fn aim_leaving(&mut self, visit: &mut Visit, world: &World, layer: Layer) {
        let pods: Vec<_> = world.pods.keys().collect();
        let remote = self.in_some_peer(world);
        let (Some(ip), Some(pod)) = (layer.ip, self.pick(&pods)) else {
            return;
        };
        let (source, destination) = match visit.hook {
            Hook::PodOut if self.chance(1, 2) => (remote, **pod),
            _ => (**pod, remote),
        };
        set(&mut visit.frame, ip + 12, source);
        set(&mut visit.frame, ip + 16, destination);
        let subnet = |config: Config<V4>| V4::mask(destination, config.peer_mask);
        let peer = world
            .config
            .and_then(|config| world.peers.get(&subnet(config)));
        if let Some(peer) = peer.filter(|_| visit.hook == Hook::VtepOut) {
            let inner = peer.inner_ethernet();
            set(&mut visit.frame, layer.ethernet, inner.destination);
            set(&mut visit.frame, layer.ethernet + 6, inner.source);
        }
    }

    /// An address behind some peer.
    fn in_some_peer(&mut self, world: &World) -> [u8; 4] {
        let peers: Vec<_> = world.peers.keys().collect();
        let number = self.random.random();
        match (self.pick(&peers), world.config) {
            (Some(subnet), Some(config)) => under(**subnet, config.peer_mask, number),
            _ => host([10, 244, 2, 0], 5),
        }
    }
}

/// An address of a subnet: its network part, and the rest from `number`.
fn under(subnet: [u8; 4], mask: [u8; 4], number: u32) -> [u8; 4] {
    let (subnet, mask) = (u32::from_be_bytes(subnet), u32::from_be_bytes(mask));
    (subnet | number & !mask).to_be_bytes()
}

fn set<const N: usize>(frame: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(field) = frame.get_mut(at..at + N) {
        field.copy_from_slice(&bytes);
    }
}
