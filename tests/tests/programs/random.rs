//! Made-up worlds and packets: listed ones, mixed and damaged. The same ones in every run.

use overlay_common::Hook;
use overlay_common::checksum;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::decide::cases::Case;
use crate::decide::world::*;

const SEED: u64 = 8472;
/// Where headers can stand: nothing behind is looked at.
const HEADERS: usize = 110;
/// Where the IP headers stand, outside and in VXLAN.
const IP_HEADERS: [usize; 2] = [14, 64];
/// Addresses that mean something to the tables.
const ADDRESSES: [[u8; 4]; 10] = [
    POD_A,
    POD_B,
    POD_UNLISTED,
    POD_REMOTE,
    POD_OTHER,
    POD_NOWHERE,
    VTEP,
    PEER_VTEP,
    STRANGER,
    OUTSIDE,
];
/// Where addresses stand in the frames.
const ADDRESSES_AT: [usize; 4] = [26, 30, 76, 80];

/// Picks and changes, by a generator with a fixed seed.
pub struct Random {
    random: StdRng,
    cases: Vec<Case>,
}

impl Random {
    pub fn new(cases: Vec<Case>) -> Self {
        let random = StdRng::seed_from_u64(SEED);
        Self { random, cases }
    }

    fn pick(&mut self) -> Case {
        self.cases.choose(&mut self.random).expect("cases").clone()
    }

    /// The world of some case, with the flags of another.
    pub fn world(&mut self) -> World {
        let mut world = self.pick().world;
        let other = self.pick().world;
        if let (Some(config), Some(other)) = (&mut world.config, &other.config) {
            config.flags = other.flags;
        }
        world
    }

    /// A packet in `world`.
    pub fn case(&mut self, world: &World) -> Case {
        let mut case = Case {
            world: world.clone(),
            ..self.pick()
        };
        if self.random.random_ratio(1, 10) {
            case.hook = *Hook::ALL.choose(&mut self.random).expect("hooks");
        }
        if self.random.random_ratio(1, 10) {
            let interfaces = [NIC, VETH_A, VETH_B, VETH_UNKNOWN];
            case.ifindex = *interfaces.choose(&mut self.random).expect("interfaces");
        }
        if self.random.random_ratio(1, 5) {
            let sizes = [1, 8, MTU - 41, MTU - 40, MTU - 39, 65535];
            case.gso_size = *sizes.choose(&mut self.random).expect("sizes");
        }
        if case.hook == Hook::NetXdp {
            // There are no super-packets yet.
            case.gso_size = 0;
        }
        self.damage(&mut case.frame);
        case.want = case.decide();
        case
    }

    fn damage(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..self.random.random_range(0..3) {
            let at = self.random.random_range(0..HEADERS.min(frame.len()));
            frame[at] = match self.random.random_range(0..3) {
                0 => self.random.random(),
                1 => frame[at] ^ (1 << self.random.random_range(0..8)),
                _ => frame[at].wrapping_add(1),
            };
        }
        if self.random.random_ratio(1, 4) {
            let at = *ADDRESSES_AT.choose(&mut self.random).expect("places");
            let address = ADDRESSES.choose(&mut self.random).expect("addresses");
            if let Some(field) = frame.get_mut(at..at + 4) {
                field.copy_from_slice(address);
            }
        }
        if self.random.random_ratio(3, 4) {
            mend(frame);
        }
        if self.random.random_ratio(1, 20) {
            // A kernel does not run programs on less than an Ethernet header and a byte.
            frame.truncate(self.random.random_range(15..=frame.len()));
        } else if self.random.random_ratio(1, 20) {
            frame.extend(vec![0; self.random.random_range(1..30)]);
        }
    }
}

/// Makes header checksums fit again.
fn mend(frame: &mut [u8]) {
    for start in IP_HEADERS {
        let Some(header) = frame.get_mut(start..start + 20) else {
            continue;
        };
        if header[0] >> 4 != 4 {
            continue;
        }
        header[10..12].fill(0);
        let words: [u32; 5] = bytemuck::pod_read_unaligned(header);
        header[10..12].copy_from_slice(&checksum::of(&words).to_ne_bytes());
    }
}
