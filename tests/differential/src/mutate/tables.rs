//! Tables changed: other masks, flags, entries.

use overlay_common::schema::{
    ENDPOINT_ADDRESSES, Endpoint, FlowKey, PEER_NEXT_HOP, POD_KERNEL_PATH, PeerEntry, PodEntry,
    Vtep,
};
use overlay_common::vxlan::Tunnel;
use overlay_common::{Family as _, V4};
use rand::RngExt as _;

use super::Mutator;
use crate::namespace::INTERFACES;
use overlay_cases::world::{NIC, NIC_MAC, PEER_NIC_MAC, VTEP_INTERFACE, World};

/// Where a prepared header has the MAC address of the peer's VXLAN device.
const INNER_MAC: std::ops::Range<usize> = 50..56;

/// Prepares the peers' headers anew, as the agent does when its configuration changes.
fn prepare(world: &mut World) {
    let Some(config) = world.config else {
        return;
    };
    for peer in world.peers.values_mut() {
        let mut destination_mac = [0; 6];
        destination_mac.copy_from_slice(&peer.header[INNER_MAC]);
        let tunnel = Tunnel {
            source: config.vtep,
            destination: peer.vtep,
            port: config.port,
            vni: config.vni,
            source_mac: config.vtep_mac,
            destination_mac,
            outer_macs: (PEER_NIC_MAC, NIC_MAC),
        };
        peer.header = V4::prepare(&tunnel, V4::ETHERTYPE);
    }
}

impl Mutator {
    /// Other tables, made from some.
    pub fn world(&mut self, world: &mut World) {
        if self.chance(1, 48) {
            world.config = None;
        }
        for _ in 0..self.one_of([0, 1, 1, 2, 3, 6]) {
            match self.below(8) {
                0 => self.change_flags(world),
                1 => self.change_masks(world),
                2 => self.change_numbers(world),
                3 => self.change_pod(world),
                4 => self.add_pod(world),
                5 => self.change_peer(world),
                6 => self.add_peer(world),
                _ => self.change_flows(world),
            }
        }
        prepare(world);
    }

    fn change_flags(&mut self, world: &mut World) {
        let bits = self.below(256) as u32;
        world.leases_are_stale = self.chance(1, 4);
        if let Some(config) = &mut world.config {
            // Mostly active: there is little to see otherwise.
            config.flags = if self.chance(7, 8) { bits | 1 } else { bits };
        }
    }

    /// Masks that cut networks elsewhere; peers are found by the new one.
    fn change_masks(&mut self, world: &mut World) {
        let lengths = [0, 8, 12, 16, 20, 24, 25, 28, 30, 31, 32];
        let (network, subnet, peer) = (
            mask(self.one_of(lengths)),
            mask(self.one_of(lengths)),
            mask(self.one_of(lengths)),
        );
        let Some(config) = &mut world.config else {
            return;
        };
        match self.below(3) {
            0 => {
                config.network = and(config.network, network);
                config.network_mask = network;
            }
            1 => {
                config.subnet = and(config.subnet, subnet);
                config.subnet_mask = subnet;
            }
            _ => {
                config.peer_mask = peer;
                let peers = std::mem::take(&mut world.peers);
                world.peers = peers
                    .into_iter()
                    .map(|(key, entry)| (and(key, peer), entry))
                    .collect();
            }
        }
    }

    fn change_numbers(&mut self, world: &mut World) {
        let (random, address): (u32, [u8; 4]) = (self.random.random(), self.random.random());
        let Some(config) = &mut world.config else {
            return;
        };
        match self.below(8) {
            0 => config.vni = self.one_of([0, 1, 4096, 0x00ff_ffff, random & 0x00ff_ffff]),
            1 => config.port = self.one_of([0, 4789, 8472, 80, 40000, random as u16]),
            2 => {
                let range = [(32768, 28231), (0, 0), (0, 65535), (65535, 0), (1024, 1)];
                (config.source_port_min, config.source_port_count) = self.one_of(range);
            }
            3 => config.underlay_ifindex = self.one_of([NIC, 0, 77]),
            4 => config.vtep = self.one_of([config.vtep, address]),
            5 => config.vtep_ifindex = self.one_of([VTEP_INTERFACE, 0]),
            6 => config.gateway = self.one_of([config.gateway, [0; 4], address]),
            _ => config.vtep_mac = self.one_of([config.vtep_mac, config.bridge_mac, NIC_MAC]),
        }
    }

    fn change_pod(&mut self, world: &mut World) {
        let mtu = self.mtu();
        let addresses: Vec<_> = world.pods.keys().copied().collect();
        let Some(address) = self.pick(&addresses).copied() else {
            return;
        };
        let ifindex = self.one_of(INTERFACES);
        if let Some(pod) = world.pods.get_mut(&address) {
            match self.below(4) {
                0 => pod.flags ^= POD_KERNEL_PATH,
                1 => pod.mtu = mtu,
                2 => pod.ifindex = ifindex,
                _ => drop(world.pods.remove(&address)),
            }
        }
        let owner = world.pods.get(&address).map_or(0, |pod| pod.owner);
        let place = self.below(ENDPOINT_ADDRESSES);
        if self.chance(1, 3)
            && let Some(endpoint) = world.endpoints.get_mut(&ifindex)
        {
            match self.below(4) {
                0 => endpoint.flags ^= POD_KERNEL_PATH,
                1 => endpoint.addresses[place] = address,
                2 => endpoint.owner = owner,
                _ => drop(world.endpoints.remove(&ifindex)),
            }
        }
    }

    fn add_pod(&mut self, world: &mut World) {
        let (number, [a, b]): (u32, [u8; 2]) = (self.random.random(), self.random.random());
        let (subnet, mask) = world
            .config
            .map_or(([10, 244, 1, 0], [255, 255, 255, 0]), |config| {
                (config.subnet, config.subnet_mask)
            });
        let address = or(subnet, and(number.to_be_bytes(), mask.map(|byte| !byte)));
        let (ifindex, mac) = (self.one_of(INTERFACES), [2, 0, 0, 1, a, b]);
        let flags = if self.chance(1, 8) {
            POD_KERNEL_PATH
        } else {
            0
        };
        let owner = self.one_of([0, ifindex, INTERFACES[0]]);
        let endpoint = Endpoint {
            addresses: [address; ENDPOINT_ADDRESSES],
            mac,
            flags,
            owner,
        };
        let pod = PodEntry {
            ifindex,
            mtu: self.mtu(),
            mac,
            flags,
            owner,
        };
        world.endpoints.insert(ifindex, endpoint);
        world.pods.insert(address, pod);
    }

    fn change_peer(&mut self, world: &mut World) {
        let mtu = self.mtu();
        let subnets: Vec<_> = world.peers.keys().copied().collect();
        let Some(subnet) = self.pick(&subnets).copied() else {
            return;
        };
        if let Some(peer) = world.peers.get_mut(&subnet) {
            match self.below(4) {
                0 => peer.flags ^= PEER_NEXT_HOP,
                1 => peer.mtu = mtu,
                2 => drop(world.vteps.remove(&peer.vtep)),
                _ => drop(world.peers.remove(&subnet)),
            }
        }
    }

    fn add_peer(&mut self, world: &mut World) {
        let ([a, b], number): ([u8; 2], u32) = (self.random.random(), self.random.random());
        let Some(config) = world.config else {
            return;
        };
        let vteps: Vec<_> = world.vteps.keys().copied().collect();
        let vtep = match self.pick(&vteps) {
            Some(vtep) if self.chance(1, 3) => *vtep,
            _ => [192, 168, a, b],
        };
        let inside = or(
            config.network,
            and(number.to_be_bytes(), config.network_mask.map(|byte| !byte)),
        );
        let mut header = [0; 14 + V4::VXLAN_OVERHEAD as usize];
        header[INNER_MAC].copy_from_slice(&[2, 0, 0, 2, a, b]);
        let peer = PeerEntry {
            header,
            vtep,
            mtu: self.mtu(),
            flags: self.one_of([0, PEER_NEXT_HOP]),
        };
        world.peers.insert(and(inside, config.peer_mask), peer);
        world.vteps.entry(vtep).or_insert(Vtep { subnets: 1 });
    }

    fn change_flows(&mut self, world: &mut World) {
        if self.chance(1, 4) {
            world.flows.clear();
            return;
        }
        let addresses: Vec<_> = world
            .pods
            .keys()
            .copied()
            .chain(world.peers.keys().map(|subnet| super::host(*subnet, 5)))
            .collect();
        let (Some(a), Some(b)) = (
            self.pick(&addresses).copied(),
            self.pick(&addresses).copied(),
        ) else {
            return;
        };
        let ports = self.one_of([(40000, 80), (80, 40000), (0, 0), (7, 7)]);
        let protocol = self.one_of([6, 17, 1, 132, 47]);
        world
            .flows
            .insert(FlowKey::new((a, ports.0), (b, ports.1), protocol));
    }

    /// A length that a path takes, often next to one that packets have.
    fn mtu(&mut self) -> u32 {
        let random = self.random.random_range(0..1600);
        self.one_of([
            1450,
            1449,
            1451,
            1500,
            1280,
            68,
            0,
            47,
            48,
            49,
            65485,
            65535,
            u32::MAX,
            random,
        ])
    }
}

fn mask(length: u32) -> [u8; 4] {
    u32::MAX.checked_shl(32 - length).unwrap_or(0).to_be_bytes()
}

fn and(a: [u8; 4], b: [u8; 4]) -> [u8; 4] {
    (u32::from_be_bytes(a) & u32::from_be_bytes(b)).to_be_bytes()
}

fn or(a: [u8; 4], b: [u8; 4]) -> [u8; 4] {
    (u32::from_be_bytes(a) | u32::from_be_bytes(b)).to_be_bytes()
}
