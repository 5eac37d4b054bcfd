//! Makes packets and tables up: known ones changed with the structure of the headers in mind.

mod aim;
mod fields;
pub mod layout;
mod shape;
mod tables;

use overlay_common::Hook;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::namespace::INTERFACES;
use overlay_cases::world::World;
use overlay_common::visit::Visit;

/// The kernel takes no longer frame here: a page holds it with room in front and the kernel's notes
/// behind.
const LONGEST: usize = 3300;
/// And none that is shorter than an Ethernet header and a byte.
const SHORTEST: usize = 15;

/// Changes packets and tables, the same way every time from the same seed.
pub struct Mutator {
    random: StdRng,
}

/// What the tables of a world make worth trying.
pub struct Pool {
    addresses: Vec<[u8; 4]>,
    macs: Vec<[u8; 6]>,
    port: u16,
    vni: u32,
}

impl Mutator {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// Picks one of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.choose(&mut self.random)
    }

    /// Whether something happens that does so `times` in `of` times.
    pub fn chance(&mut self, times: u32, of: u32) -> bool {
        self.random.random_ratio(times, of)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    /// One of several, by value.
    fn one_of<T: Copy, const N: usize>(&mut self, of: [T; N]) -> T {
        of[self.below(N)]
    }

    /// Another packet, made from one.
    pub fn visit(&mut self, visit: &mut Visit, world: &World, pool: &Pool) {
        if self.chance(1, 16) {
            visit.hook = self.one_of(Hook::ALL);
        }
        if self.chance(1, 2) {
            self.aim(visit, world);
        }
        if self.chance(1, 16) {
            visit.ifindex = self.one_of(INTERFACES);
        }
        self.segment_size(visit, world);
        if visit.hook == Hook::NetXdp {
            // There are no super-packets yet.
            visit.gso_size = 0;
        }
        // Often one change, sometimes none or many.
        let changes = self.one_of([0, 1, 1, 1, 1, 2, 2, 3, 5]);
        for _ in 0..changes {
            if self.chance(1, 5) {
                self.reshape(&mut visit.frame, pool);
            } else {
                self.change_field(&mut visit.frame, pool);
            }
        }
        if self.chance(7, 8) {
            layout::mend(&mut visit.frame, pool.port);
        }
        if self.chance(1, 16) {
            // What does not fit the lengths and checksums any more.
            self.change_field(&mut visit.frame, pool);
        }
        if self.chance(1, 24) {
            self.cut_or_pad(&mut visit.frame);
        }
        visit.frame.truncate(LONGEST);
        if visit.frame.len() < SHORTEST {
            visit.frame.resize(SHORTEST, 0);
        }
    }

    fn segment_size(&mut self, visit: &mut Visit, world: &World) {
        if !self.chance(1, 6) {
            return;
        }
        let mtu = world.pods.values().next().map_or(1450, |pod| pod.mtu);
        visit.gso_size = match self.below(4) {
            0 => 0,
            1 => self.one_of([1, 8, 1400, 65535]),
            // Around the headers of TCP with and without options, and of UDP.
            2 => mtu
                .saturating_sub(self.random.random_range(26..=82))
                .min(65535),
            _ => self.random.random_range(0..=65535),
        };
    }
}

impl Pool {
    /// Collects what means something to the tables, and what is next to it.
    pub fn of(world: &World) -> Self {
        use overlay_cases::world::{NIC_MAC, OUTSIDE, PEER_VTEP_MAC, STRANGER};
        let mut addresses = vec![
            OUTSIDE,
            STRANGER,
            [255; 4],
            [224, 0, 0, 1],
            [127, 0, 0, 1],
            [0; 4],
        ];
        let mut macs = vec![
            NIC_MAC,
            PEER_VTEP_MAC,
            [0xff; 6],
            [1, 0, 0x5e, 0, 0, 1],
            [0; 6],
        ];
        addresses.extend(world.pods.keys());
        addresses.extend(world.vteps.keys());
        addresses.extend(
            world
                .endpoints
                .values()
                .flat_map(|endpoint| endpoint.addresses),
        );
        macs.extend(world.pods.values().map(|pod| pod.mac));
        macs.extend(world.endpoints.values().map(|endpoint| endpoint.mac));
        for (subnet, peer) in &world.peers {
            addresses.extend([*subnet, host(*subnet, 5), host(*subnet, 255), peer.vtep]);
        }
        for flow in &world.flows {
            addresses.extend([flow.low, flow.high]);
        }
        let (mut port, mut vni) = (8472, 1);
        if let Some(config) = &world.config {
            addresses.extend([config.vtep, config.network, config.subnet]);
            addresses.extend([host(config.subnet, 1), host(config.subnet, 99)]);
            macs.extend([config.vtep_mac, config.bridge_mac]);
            (port, vni) = (config.port, config.vni);
        }
        Self {
            addresses,
            macs,
            port,
            vni,
        }
    }
}

/// An address of a subnet.
fn host(subnet: [u8; 4], number: u8) -> [u8; 4] {
    let [a, b, c, d] = subnet;
    [a, b, c, d | number]
}
