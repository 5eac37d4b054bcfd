//! The kinds of hostile packets.

use std::net::Ipv4Addr;
use std::str::FromStr;

use super::{MARK, Scene, THIRD};
use crate::frame::{ARP, IPV4, Ip, Mac, VLAN, VXLAN_PORT, arp, ethernet, tagged, vxlan};

/// A kind of hostile stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// VXLAN from an address that holds no lease, with the address of a peer's pod inside.
    Stranger,
    /// VXLAN from a peer with inner sources of another node's pods, of the receiver's own pods, and
    /// of no pod.
    InnerSource,
    /// VXLAN with other VNIs.
    Vni,
    /// Tags inside VXLAN.
    InnerVlan,
    /// Fragments of forged VXLAN, first ones of every length.
    Fragments,
    /// Forged VXLAN, cut off at every length and whole.
    Truncated,
    /// VXLAN in VXLAN, for the node to open twice.
    Nested,
    /// Wrong lengths in outer and inner headers, around forged sources.
    Lengths,
    /// Forged VXLAN with random bytes changed, except the addresses of the sender.
    Mutated,
    /// A pod sends from other pods' addresses.
    PodSource,
    /// A pod sends VXLAN to nodes.
    PodVxlan,
    /// A pod announces other pods' addresses by ARP.
    PodArp,
    /// Nothing hostile: datagrams to a port without a listener, which every host has to bear.
    Control,
}

/// The place where a stream starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A host of the underlay that is no node.
    Stranger,
    /// Node 2's NIC.
    Peer,
    /// Pod 1 of node 1.
    Pod,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 13] = [
        Self::Stranger,
        Self::InnerSource,
        Self::Vni,
        Self::InnerVlan,
        Self::Fragments,
        Self::Truncated,
        Self::Nested,
        Self::Lengths,
        Self::Mutated,
        Self::PodSource,
        Self::PodVxlan,
        Self::PodArp,
        Self::Control,
    ];

    /// The kind's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::InnerSource => "inner-source",
            Self::Vni => "vni",
            Self::InnerVlan => "inner-vlan",
            Self::Fragments => "fragments",
            Self::Truncated => "truncated",
            Self::Nested => "nested",
            Self::Lengths => "lengths",
            Self::Mutated => "mutated",
            Self::PodSource => "pod-source",
            Self::PodVxlan => "pod-vxlan",
            Self::PodArp => "pod-arp",
            Self::Control => "control",
        }
    }

    /// The place where the kind's stream starts.
    pub fn origin(self) -> Origin {
        match self {
            Self::InnerSource | Self::InnerVlan | Self::Nested => Origin::Peer,
            Self::PodSource | Self::PodVxlan | Self::PodArp => Origin::Pod,
            _ => Origin::Stranger,
        }
    }

    /// The kind's frames, one after the other; a stream repeats them.
    pub fn frames(self, scene: &Scene) -> Vec<Vec<u8>> {
        let Scene {
            victim,
            attacker,
            neighbour,
            remote,
            third,
            ..
        } = *scene;
        match self {
            Self::Stranger => scene.spread(|i| scene.vxlan(self, 1, &scene.inner(remote.ip, i))),
            Self::InnerSource => scene.spread(|i| {
                let names = [third, neighbour.ip, Ipv4Addr::new(10, 244, 77, 5)];
                scene.vxlan(self, 1, &scene.inner(names[i % names.len()], i))
            }),
            Self::Vni => scene.spread(|i| {
                let vni = 2 + u32::try_from(i).unwrap_or_default() * 65_537;
                scene.vxlan(self, vni, &scene.inner(remote.ip, i))
            }),
            Self::InnerVlan => scene.spread(|i| {
                let tag = (VLAN, u16::try_from(i).unwrap_or_default());
                scene.vxlan(self, 1, &tagged(&scene.inner(remote.ip, i), &[tag]))
            }),
            Self::Fragments => scene.fragments(),
            Self::Truncated => scene.truncated(),
            Self::Nested => scene.nested(),
            Self::Lengths => scene.lying(),
            Self::Mutated => scene.mutated(),
            Self::PodSource => scene.spread(|i| {
                let names = [neighbour.ip, remote.ip, third, victim.gateway];
                let name = names[i % names.len()];
                let to = if i % 2 == 0 { remote } else { neighbour };
                let hop = if i % 2 == 0 {
                    scene.bridge
                } else {
                    neighbour.mac
                };
                let ip = Ip::udp(name, to.ip, port(i), MARK);
                ethernet(hop, attacker.mac, IPV4, &ip.packet())
            }),
            Self::PodVxlan => scene.spread(|i| {
                let to = [victim.vtep, scene.peer.vtep, victim.gateway];
                let inner = ethernet(
                    victim.device,
                    scene.peer.device,
                    IPV4,
                    &Ip::udp(remote.ip, neighbour.ip, port(i), MARK).packet(),
                );
                let ip = Ip::udp(attacker.ip, to[i % to.len()], VXLAN_PORT, &vxlan(1, &inner));
                ethernet(scene.bridge, attacker.mac, IPV4, &ip.packet())
            }),
            Self::PodArp => scene.spread(|i| {
                let names = [neighbour.ip, remote.ip, victim.gateway];
                let operation = if i % 2 == 0 { 1 } else { 2 };
                let sender = (attacker.mac, names[i % names.len()]);
                let mut packet = arp(operation, sender, (neighbour.mac, neighbour.ip));
                packet.extend(MARK);
                ethernet(crate::frame::BROADCAST, attacker.mac, ARP, &packet)
            }),
            Self::Control => scene.spread(|i| {
                let (address, mac) = scene.stranger;
                // The payload is as long as the stranger's VXLAN.
                let payload = vxlan(1, &scene.inner(remote.ip, i));
                let closed = 9;
                let ip = Ip::udp(address, victim.vtep, closed, &payload);
                ethernet(victim.nic, mac, IPV4, &ip.packet())
            }),
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| format!("want one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Frames of a stream.
const FRAMES: usize = 256;

fn port(i: usize) -> u16 {
    1000 + u16::try_from(i).unwrap_or_default()
}

/// A generator of random numbers that is the same in every run (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap_or_default()
    }
}

impl Scene {
    fn spread(&self, frame: impl Fn(usize) -> Vec<u8>) -> Vec<Vec<u8>> {
        (0..FRAMES).map(frame).collect()
    }

    /// A frame for pod 1 of node 1, with the source `name`.
    fn inner(&self, name: Ipv4Addr, i: usize) -> Vec<u8> {
        let ip = Ip::udp(name, self.attacker.ip, port(i), MARK);
        ethernet(self.victim.device, self.peer.device, IPV4, &ip.packet())
    }

    fn sender(&self, kind: Kind) -> (Ipv4Addr, Mac) {
        match kind.origin() {
            Origin::Peer => (self.peer.vtep, self.peer.nic),
            Origin::Stranger | Origin::Pod => self.stranger,
        }
    }

    /// A frame in VXLAN, from the kind's origin to node 1.
    fn vxlan(&self, kind: Kind, vni: u32, inner: &[u8]) -> Vec<u8> {
        let (address, mac) = self.sender(kind);
        let ip = Ip::udp(address, self.victim.vtep, VXLAN_PORT, &vxlan(vni, inner));
        ethernet(self.victim.nic, mac, IPV4, &ip.packet())
    }

    /// Truncated frames, each once with the former length in its header, and once with the new one.
    fn truncated(&self) -> Vec<Vec<u8>> {
        let whole = self.vxlan(Kind::Truncated, 1, &self.inner(self.remote.ip, 0));
        let mut frames = Vec::new();
        for len in 15..=whole.len() {
            let mut frame = whole[..len].to_vec();
            frames.push(frame.clone());
            if let (Some(total), Ok(fits)) = (frame.get_mut(16..18), u16::try_from(len - 14)) {
                total.copy_from_slice(&fits.to_be_bytes());
                mend(&mut frame);
                frames.push(frame);
            }
        }
        frames
    }

    fn fragments(&self) -> Vec<Vec<u8>> {
        let (address, mac) = self.sender(Kind::Fragments);
        let mut frames = Vec::new();
        for i in 0..FRAMES {
            let payload = vxlan(1, &self.inner(self.remote.ip, i));
            let mut ip = Ip::udp(address, self.victim.vtep, VXLAN_PORT, &payload);
            ip.id = port(i);
            let first = 8 + i % 8 * 8;
            // Sometimes the second fragment comes first, because reassembly must not depend on
            // order.
            let mut pieces = ip.fragments(first);
            if i % 3 == 0 {
                pieces.reverse();
            }
            frames.extend(pieces.map(|piece| ethernet(self.victim.nic, mac, IPV4, &piece)));
        }
        frames
    }

    /// Node 2 sends a packet to the VXLAN port of node 1, at each of its addresses, inside VXLAN.
    fn nested(&self) -> Vec<Vec<u8>> {
        let flannel_address = Ipv4Addr::from(u32::from(self.victim.gateway) - 1);
        self.spread(|i| {
            let to = [self.victim.gateway, self.victim.vtep, flannel_address];
            // Another node's address is forged, too, because no check looks at the inner packet's
            // claim.
            let third = THIRD.1.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
            let from = [self.remote.ip, self.peer.vtep, self.peer.gateway, third];
            let names = [self.third, self.neighbour.ip];
            let innermost = self.inner(names[i / 12 % names.len()], i);
            let (from, to) = (from[i / 3 % from.len()], to[i % to.len()]);
            let ip = Ip::udp(from, to, VXLAN_PORT, &vxlan(1, &innermost));
            let inner = ethernet(self.victim.device, self.peer.device, IPV4, &ip.packet());
            self.vxlan(Kind::Nested, 1, &inner)
        })
    }

    fn lying(&self) -> Vec<Vec<u8>> {
        /// Positions of lengths: outer IP, its header length, outer UDP, inner IP, its header
        /// length, inner UDP.
        const LENGTHS: [(usize, usize); 6] = [(16, 2), (14, 1), (38, 2), (66, 2), (64, 1), (88, 2)];
        let whole = self.vxlan(Kind::Lengths, 1, &self.inner(self.remote.ip, 0));
        let mut numbers = Numbers(8472);
        self.spread(|_| Vec::new())
            .into_iter()
            .map(|_| {
                let mut frame = whole.clone();
                let (at, len) = LENGTHS[numbers.below(LENGTHS.len())];
                for byte in &mut frame[at..at + len] {
                    *byte = u8::try_from(numbers.below(256)).unwrap_or_default();
                }
                if len == 1 {
                    // The version stays 4.
                    frame[at] = 0x40 | frame[at] & 0x0f;
                }
                mend(&mut frame);
                frame
            })
            .collect()
    }

    fn mutated(&self) -> Vec<Vec<u8>> {
        let whole = self.vxlan(Kind::Mutated, 1, &self.inner(self.remote.ip, 0));
        let mut numbers = Numbers(4789);
        let mut frames = vec![whole; 4 * FRAMES];
        for frame in &mut frames {
            for _ in 0..=numbers.below(4) {
                let at = 12 + numbers.below(frame.len() - 12 - MARK.len());
                // The sender stays a stranger, because a stranger's VXLAN is refused whatever its
                // content.
                if !(26..30).contains(&at) {
                    frame[at] ^= 1 << numbers.below(8);
                }
            }
            mend(frame);
        }
        frames
    }
}

/// Corrects the outer header's checksum, because a host would drop the frame otherwise.
fn mend(frame: &mut [u8]) {
    let header_len = usize::from(frame[14] & 0x0f) * 4;
    if let Some(header) = frame.get_mut(14..14 + header_len.max(20)) {
        header[10..12].fill(0);
        let checksum = crate::traffic::internet_checksum(header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::{Host, PodAddress, is_marked};

    fn scene() -> Scene {
        let host = |number| Host {
            vtep: Ipv4Addr::new(192, 168, 66, number),
            nic: [2, 0, 0, 0, 1, number],
            device: [2, 0, 0, 0, 2, number],
            gateway: Ipv4Addr::new(10, 244, number, 1),
        };
        let pod = |node, number| PodAddress {
            ip: Ipv4Addr::new(10, 244, node, number),
            mac: [2, 0, 0, 3, node, number],
        };
        Scene {
            victim: host(1),
            peer: host(2),
            stranger: (Ipv4Addr::new(192, 168, 66, 253), [2, 0, 0, 0, 0, 9]),
            attacker: pod(1, 2),
            neighbour: pod(1, 3),
            remote: pod(2, 2),
            bridge: [2, 0, 0, 0, 3, 1],
            third: Ipv4Addr::new(10, 244, 250, 9),
        }
    }

    #[test]
    fn every_kind_has_marked_frames_and_a_name_of_its_own() {
        let mut names = Vec::new();
        for kind in Kind::ALL {
            let frames = kind.frames(&scene());
            assert!(frames.iter().any(|frame| is_marked(frame)), "{kind:?}");
            assert!(frames.iter().all(|frame| frame.len() > 14), "{kind:?}");
            assert_eq!(kind.name().parse(), Ok(kind));
            names.push(kind.name());
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
    }

    #[test]
    fn a_mutated_stranger_stays_one() {
        for kind in [Kind::Mutated, Kind::Lengths] {
            for frame in kind.frames(&scene()) {
                assert_eq!(frame[26..30], [192, 168, 66, 253], "{kind:?}");
            }
        }
    }
}
