//! VXLAN that a peer's node might send, correct and wrong.

use std::net::Ipv4Addr;

use crate::corpus::{Corpus, Fast};
use crate::wire::{
    BROADCAST, DF, IPV4, Ip, MF, NOBODY, TCP, UDP, UdpChecksum, VLAN, Vxlan, ethernet, tagged, tcp,
};

/// From the peer's node to the receiving pod.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    /// MAC and IP addresses of the two nodes' underlay devices.
    pub outer_from: ([u8; 6], Ipv4Addr),
    pub outer_to: ([u8; 6], Ipv4Addr),
    /// MAC addresses of the two VXLAN devices.
    pub vtep_from: [u8; 6],
    pub vtep_to: [u8; 6],
    /// The pods.
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
}

impl Tunnel {
    fn inner(&self, ip: &Ip) -> Vec<u8> {
        ethernet(self.vtep_to, self.vtep_from, IPV4, &ip.bytes())
    }

    fn plain(&self, corpus: &Corpus) -> Ip {
        let mut ip = Ip::udp(self.source, self.destination, 50);
        ip.id = corpus.id();
        ip
    }

    fn outer(&self, vxlan: &Vxlan) -> Ip {
        let (from, to) = (self.outer_from.1, self.outer_to.1);
        Ip::new(from, to, UDP, vxlan.datagram(from, to))
    }

    fn frame(&self, outer: &Ip) -> Vec<u8> {
        ethernet(self.outer_to.0, self.outer_from.0, IPV4, &outer.bytes())
    }

    /// Adds every probe.
    pub fn fill(&self, corpus: &mut Corpus) {
        self.ecn_pairs(corpus);
        self.inner_packets(corpus);
        self.outer_packets(corpus);
        self.vxlan_headers(corpus);
        self.inner_frames(corpus);
        self.outer_frames(corpus);
    }

    fn add(&self, corpus: &mut Corpus, name: &str, outer: &Ip, fast: Fast) {
        let frame = self.frame(outer);
        corpus.push(format!("VXLAN, {name}"), vec![frame], fast);
    }

    fn ecn_pairs(&self, corpus: &mut Corpus) {
        for outer_ecn in 0..4_u8 {
            for inner_ecn in 0..4_u8 {
                let mut inner = self.plain(corpus);
                inner.tos = 0xb8 | inner_ecn;
                let mut outer = self.outer(&Vxlan::of(self.inner(&inner)));
                outer.tos = outer_ecn;
                // The combinations that a peer sends, and those that routers make of them; the
                // kernel judges all others.
                let sent = if inner_ecn == 3 { 2 } else { inner_ecn };
                let fast = if outer_ecn == sent || outer_ecn == 3 && inner_ecn != 0 {
                    Fast::Whole
                } else {
                    Fast::No
                };
                let name = format!("ECN {outer_ecn} around {inner_ecn}");
                self.add(corpus, &name, &outer, fast);
            }
        }
    }

    fn inner_packets(&self, corpus: &mut Corpus) {
        let plain = |corpus: &Corpus| self.plain(corpus);
        let segment = tcp(
            self.source,
            self.destination,
            |header| header.ack = true,
            900,
        );
        for (name, change, fast) in [
            ("plain", plain(corpus), Fast::Whole),
            (
                "largest",
                Ip::udp(self.source, self.destination, 1422),
                Fast::Whole,
            ),
            (
                "no payload",
                Ip::udp(self.source, self.destination, 0),
                Fast::Whole,
            ),
            (
                "TCP",
                Ip::new(self.source, self.destination, TCP, segment),
                Fast::Whole,
            ),
            (
                "DF inside",
                Ip {
                    fragment: DF,
                    ..plain(corpus)
                },
                Fast::Whole,
            ),
            (
                "TTL 2 inside",
                Ip {
                    ttl: 2,
                    ..plain(corpus)
                },
                Fast::Whole,
            ),
            (
                "TTL 1 inside",
                Ip {
                    ttl: 1,
                    ..plain(corpus)
                },
                Fast::No,
            ),
            (
                "TTL 0 inside",
                Ip {
                    ttl: 0,
                    ..plain(corpus)
                },
                Fast::No,
            ),
            (
                "options inside",
                Ip {
                    options: vec![1, 1, 1, 0],
                    ..plain(corpus)
                },
                Fast::No,
            ),
            (
                "wrong checksum inside",
                Ip {
                    checksum_off_by: 1,
                    ..plain(corpus)
                },
                Fast::No,
            ),
            (
                "padding inside",
                Ip {
                    length_off_by: -6,
                    ..plain(corpus)
                },
                Fast::No,
            ),
            (
                "cut short inside",
                Ip {
                    length_off_by: 6,
                    ..plain(corpus)
                },
                Fast::No,
            ),
            (
                "pod that is not there",
                Ip {
                    destination: nobody(self.destination),
                    ..plain(corpus)
                },
                Fast::No,
            ),
            (
                "broadcast inside",
                Ip {
                    destination: self.broadcast(),
                    ..plain(corpus)
                },
                Fast::No,
            ),
            (
                "source outside the overlay",
                Ip {
                    source: Ipv4Addr::new(172, 31, 7, 7),
                    ..plain(corpus)
                },
                Fast::No,
            ),
        ] {
            let inner = Ip {
                id: corpus.id(),
                ..change
            };
            self.add(
                corpus,
                name,
                &self.outer(&Vxlan::of(self.inner(&inner))),
                fast,
            );
        }
        let whole = crate::wire::udp(self.source, self.destination, 4001, 4002, 1200);
        let id = corpus.id();
        let part = |payload: &[u8], fragment| {
            let mut ip = Ip::new(self.source, self.destination, UDP, payload.to_vec());
            (ip.id, ip.fragment) = (id, fragment);
            self.frame(&self.outer(&Vxlan::of(self.inner(&ip))))
        };
        let frames = vec![part(&whole[..800], MF), part(&whole[800..], 100)];
        corpus.push("VXLAN, fragments inside".to_owned(), frames, Fast::No);
    }

    fn broadcast(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.destination.octets();
        Ipv4Addr::new(a, b, c, 255)
    }

    fn outer_packets(&self, corpus: &mut Corpus) {
        for (name, change, fast) in [
            ("outer TTL 1", (|ip| ip.ttl = 1) as fn(&mut Ip), Fast::Whole),
            (
                "outer DF and DSCP",
                |ip| (ip.fragment, ip.tos) = (DF, 0xb8),
                Fast::Whole,
            ),
            (
                "outer options",
                |ip| ip.options = vec![1, 1, 1, 0],
                Fast::No,
            ),
            (
                "outer checksum wrong",
                |ip| ip.checksum_off_by = 1,
                Fast::No,
            ),
            (
                "outer longer than the frame",
                |ip| ip.length_off_by = 4,
                Fast::No,
            ),
            (
                "outer shorter than the frame",
                |ip| ip.length_off_by = -4,
                Fast::No,
            ),
        ] {
            let inner = self.plain(corpus);
            let mut outer = self.outer(&Vxlan::of(self.inner(&inner)));
            change(&mut outer);
            self.add(corpus, name, &outer, fast);
        }
        let mut inner = Ip::udp(self.source, self.destination, 1000);
        inner.id = corpus.id();
        let datagram = self.outer(&Vxlan::of(self.inner(&inner)));
        let part = |range: std::ops::Range<usize>, fragment| {
            let payload = datagram.payload[range].to_vec();
            self.frame(&Ip {
                payload,
                fragment,
                id: 77,
                ..datagram.clone()
            })
        };
        let length = datagram.payload.len();
        let frames = vec![part(0..512, MF), part(512..length, 64)];
        corpus.push("VXLAN, outer fragments".to_owned(), frames, Fast::No);
    }

    fn vxlan_headers(&self, corpus: &mut Corpus) {
        // No probe has a wrong outer checksum, because the kernel verifies it, and the fast path
        // relies on the inner packet's checksum (RFC 7348, section 5, lets the receiver choose).
        let inner = self.plain(corpus);
        let mut vxlan = Vxlan::of(self.inner(&inner));
        vxlan.udp_checksum = UdpChecksum::Right;
        self.add(
            corpus,
            "right UDP checksum",
            &self.outer(&vxlan),
            Fast::Whole,
        );
        for (name, change) in [
            (
                "UDP says it is longer",
                (|vxlan| vxlan.udp_length_off_by = 4) as fn(&mut Vxlan),
            ),
            ("UDP says it is shorter", |vxlan| {
                vxlan.udp_length_off_by = -4
            }),
            ("no flags", |vxlan| vxlan.flags = [0; 4]),
            ("all flags", |vxlan| vxlan.flags = [0xff; 4]),
            ("group policy", |vxlan| vxlan.flags = [0x88, 0, 0, 1]),
            ("reserved byte", |vxlan| vxlan.reserved = 1),
        ] {
            let inner = self.plain(corpus);
            let mut vxlan = Vxlan::of(self.inner(&inner));
            change(&mut vxlan);
            self.add(corpus, name, &self.outer(&vxlan), Fast::No);
        }
    }

    fn inner_frames(&self, corpus: &mut Corpus) {
        let (ours, theirs) = (self.vtep_to, self.vtep_from);
        for (name, to, from) in [
            ("to another MAC address", NOBODY, theirs),
            ("to the broadcast MAC address", BROADCAST, theirs),
            ("from the receiver's own MAC address", ours, ours),
            // Neither the kernel nor flannel looks at the source.
            ("from another MAC address", ours, [2, 0xaa, 0, 0, 0, 7]),
        ] {
            let fast = if (to, from) == (ours, [2, 0xaa, 0, 0, 0, 7]) {
                Fast::Whole
            } else {
                Fast::No
            };
            let frame = ethernet(to, from, IPV4, &self.plain(corpus).bytes());
            self.add(corpus, name, &self.outer(&Vxlan::of(frame)), fast);
        }
        // Of other inner protocols none arrives: see `refusals`.
    }

    fn outer_frames(&self, corpus: &mut Corpus) {
        let outer = self.outer(&Vxlan::of(self.inner(&self.plain(corpus))));
        let frame = ethernet(
            self.outer_to.0,
            self.outer_from.0,
            VLAN,
            &tagged(0, IPV4, &outer.bytes()),
        );
        corpus.push("VXLAN, outer VLAN 0".to_owned(), vec![frame], Fast::No);
        let outer = self.outer(&Vxlan::of(self.inner(&self.plain(corpus))));
        let mut frame = self.frame(&outer);
        frame.extend([0; 6]);
        corpus.push("VXLAN, outer padding".to_owned(), vec![frame], Fast::No);
        let outer = self.outer(&Vxlan::of(self.inner(&self.plain(corpus))));
        let frame = ethernet(NOBODY, self.outer_from.0, IPV4, &outer.bytes());
        corpus.push(
            "VXLAN, for another host's MAC address".to_owned(),
            vec![frame],
            Fast::No,
        );
    }
}

/// An address that no pod has, in the subnet of a pod's address.
pub fn nobody(pod: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = pod.octets();
    Ipv4Addr::new(a, b, c, 254)
}
