//! Packets that the underlay must not send.

use std::net::Ipv4Addr;

use overlay_tests::frame::{IPV4, Ip, SERVICE_VLAN, VLAN, VXLAN_PORT, ethernet, tagged, vxlan};

use crate::UNLEASED;
use crate::case::{End, From, Pod, STACK, Shape};
use crate::stage::Stage;

impl Stage {
    /// VXLAN from the underlay.
    pub(super) fn network(&mut self) {
        const GOOD: End = End::Delivered(Pod::Own);
        const FORGED: End = End::Refused(1, &["foreign_inner_source"]);
        const UNKNOWN: End = End::Refused(1, &["unknown_vtep"]);
        let remote = self.pods[&Pod::Remote].0;
        let local = self.pods[&Pod::Local].0;
        let third = Ipv4Addr::new(10, 244, 250, 9);
        let peer = self.vteps[1].0;
        let stranger = Ipv4Addr::new(192, 168, 66, 253);
        for (what, from, outer, inner, vni, end) in [
            ("an honest peer", From::Peer, peer, remote, 1, GOOD),
            (
                "a peer in a third node's name",
                From::Peer,
                peer,
                third,
                1,
                FORGED,
            ),
            (
                "a peer in the receiver's name",
                From::Peer,
                peer,
                local,
                1,
                FORGED,
            ),
            (
                "a peer in nobody's name",
                From::Peer,
                peer,
                UNLEASED,
                1,
                FORGED,
            ),
            (
                "a peer with another VNI",
                From::Peer,
                peer,
                remote,
                7,
                End::Refused(1, &["wrong_vni"]),
            ),
            ("a stranger", From::Stranger, stranger, remote, 1, UNKNOWN),
            (
                "a stranger in the receiver's name",
                From::Stranger,
                stranger,
                local,
                1,
                UNKNOWN,
            ),
            (
                "a stranger with another VNI",
                From::Stranger,
                stranger,
                remote,
                7,
                End::Refused(1, &["wrong_vni"]),
            ),
        ] {
            let outer_shapes = [
                Shape::Plain,
                Shape::Options,
                Shape::Tag(VLAN),
                Shape::Tag(SERVICE_VLAN),
                Shape::Stacked,
                Shape::Fragments(128),
                // Only UDP's header; inside VXLAN's; Ethernet's; IP's.
                Shape::Fragments(8),
                Shape::Fragments(16),
                Shape::Fragments(24),
                Shape::Fragments(40),
            ];
            let inner_shapes = [Shape::Options, Shape::Fragments(8), Shape::Fragments(64)];
            let shapes = outer_shapes
                .map(|outer| (outer, Shape::Plain))
                .into_iter()
                .chain(inner_shapes.map(|inner| (Shape::Plain, inner)));
            for (outer_shape, inner_shape) in shapes {
                let end = match (outer_shape, end) {
                    // The programs see the first fragment only, and do not wait for the others.
                    (Shape::Fragments(first), _) if first < 50 && self.fast_path => {
                        End::Refused(1, &["hiding_fragment"])
                    }
                    (_, end) => end,
                };
                let name = format!("{what} sends VXLAN, {outer_shape:?} around {inner_shape:?}");
                self.add(name, from, end, |stage, payload| {
                    let (to, nic, device) = stage.vteps[0];
                    let ip = Ip::udp(inner, stage.own().0, 9, payload);
                    let sender = if from == From::Peer {
                        stage.vteps[1].1
                    } else {
                        stage.stranger
                    };
                    let wrap = |frame: Vec<u8>| {
                        let ip = Ip::udp(outer, to, VXLAN_PORT, &vxlan(vni, &frame));
                        outer_shape.dress(nic, sender, &ip)
                    };
                    let inner = inner_shape.dress(device, stage.vteps[1].2, &ip);
                    inner.into_iter().flat_map(wrap).collect()
                });
            }
            for tags in [&[(VLAN, 0)][..], &[(SERVICE_VLAN, 0)], &[(VLAN, 5)], &STACK] {
                if from != From::Peer || vni != 1 || inner != remote && inner != third {
                    continue;
                }
                // A tag inside VXLAN is refused from every sender (RFC 7348, section 6.1).
                let name = format!("{what} sends VXLAN around tags {tags:x?}");
                self.add(
                    name,
                    from,
                    End::Refused(1, &["inner_vlan"]),
                    |stage, payload| {
                        let (to, nic, device) = stage.vteps[0];
                        let ip = Ip::udp(inner, stage.own().0, 9, payload).packet();
                        let frame = tagged(&ethernet(device, stage.vteps[1].2, IPV4, &ip), tags);
                        let ip = Ip::udp(outer, to, VXLAN_PORT, &vxlan(vni, &frame));
                        Shape::Plain.dress(nic, stage.vteps[1].1, &ip)
                    },
                );
            }
        }
    }

    /// The kernel cuts off the bytes behind the end of a packet; there, these packets have honest
    /// headers.
    pub(super) fn decoys(&mut self) {
        let honest = self.pods[&Pod::Remote].0;
        let forged = Ipv4Addr::new(10, 244, 250, 9);
        let fragment: &[&str] = if self.fast_path {
            &["hiding_fragment"]
        } else {
            &["foreign_inner_source"]
        };
        let whole: &[&str] = &["foreign_inner_source"];
        for (what, first, reasons) in [
            ("a first fragment", Some(8), fragment),
            ("a whole packet", None, whole),
        ] {
            let name = format!("a peer sends VXLAN with a decoy behind {what}");
            let end = End::Refused(1, reasons);
            self.add(name, From::Peer, end, |stage, payload| {
                let (to, nic, device) = stage.vteps[0];
                let (outer, sender, mac) = stage.vteps[1];
                let around = |inner: Ipv4Addr| {
                    let ip = Ip::udp(inner, stage.own().0, 9, payload).packet();
                    let frame = ethernet(device, mac, IPV4, &ip);
                    Ip::udp(outer, to, VXLAN_PORT, &vxlan(1, &frame))
                };
                let (forged, honest) = (around(forged), around(honest));
                let frame = |packet: &[u8]| ethernet(nic, sender, IPV4, packet);
                let Some(first) = first else {
                    return vec![frame(&[forged.packet(), honest.packet()].concat())];
                };
                let [begin, rest] = forged.fragments(first);
                let decoy = [&begin, &honest.payload[first..]].concat();
                vec![frame(&decoy), frame(&rest)]
            });
        }
    }
}
