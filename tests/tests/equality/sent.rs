//! Packets that a pod sends.

use std::net::Ipv4Addr;

mod odd;

use crate::corpus::{Corpus, Fast};
use crate::wire::{self, DF, ICMP, IPV4, Ip, MF, TCP, UDP, ethernet, padded};

/// The sending pod and the destination.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub name: &'static str,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    /// The sending pod's MAC address.
    pub mac: [u8; 6],
    /// The receiver of the frame.
    pub next_hop: [u8; 6],
    /// How far a plain packet is carried on this way.
    pub plain: Fast,
    /// Whether the frame is routed, so that its time to live counts.
    pub routed: bool,
}

impl Corpus {
    /// One IPv4 packet on a way.
    fn ip(&mut self, way: &Way, name: &str, mut ip: Ip, fast: Fast) {
        ip.id = self.id();
        let frame = ethernet(way.next_hop, way.mac, IPV4, &ip.bytes());
        self.push(format!("{} {name}", way.name), vec![frame], fast);
    }

    /// Adds a frame of another kind, whose payload ends with the mark.
    fn other(&mut self, way: &Way, name: &str, to: [u8; 6], kind: u16, mut payload: Vec<u8>) {
        payload.extend(self.mark());
        let frame = ethernet(to, way.mac, kind, &payload);
        self.push(format!("{} {name}", way.name), vec![frame], Fast::No);
    }

    /// Adds all packets that are sent on one way.
    pub fn add_way(&mut self, way: &Way) {
        self.ordinary(way);
        self.protocols(way);
        self.header_fields(way);
        self.fragments(way);
        self.malformed(way);
        self.frames(way);
    }

    /// Adds the packets that a node's own IP stack sends on a way: the stack builds the frames
    /// itself, and only correct ones.
    pub fn add_stacks(&mut self, way: &Way) {
        self.ordinary(way);
        self.protocols(way);
        self.header_fields(way);
        self.fragments(way);
    }

    fn ordinary(&mut self, way: &Way) {
        let (from, to) = (way.source, way.destination);
        for length in [0, 1, 100, 1400, 1422] {
            let name = format!("UDP with {length} bytes");
            self.ip(way, &name, Ip::udp(from, to, length), way.plain);
        }
        let mut short = Ip::udp(from, to, 1);
        short.id = self.id();
        let frame = padded(ethernet(way.next_hop, way.mac, IPV4, &short.bytes()));
        self.push(
            format!("{} padded minimum frame", way.name),
            vec![frame],
            Fast::No,
        );

        let mut unsummed = Ip::udp(from, to, 33);
        unsummed.payload[6..8].fill(0);
        self.ip(way, "UDP without checksum", unsummed, way.plain);
        let mut wrong = Ip::udp(from, to, 33);
        wrong.payload[6] ^= 1;
        self.ip(way, "UDP with a wrong checksum", wrong, way.plain);
        for (what, by) in [("longer", 9_u8), ("shorter", 0_u8.wrapping_sub(9))] {
            let mut ip = Ip::udp(from, to, 40);
            ip.payload[5] = ip.payload[5].wrapping_add(by);
            self.ip(way, &format!("UDP that says it is {what}"), ip, way.plain);
        }
        let vxlan = wire::udp(from, to, 5000, 8472, 60);
        self.ip(
            way,
            "UDP to VXLAN's port",
            Ip::new(from, to, UDP, vxlan),
            way.plain,
        );

        let syn = wire::tcp(
            from,
            to,
            |header| {
                header.syn = true;
                let _ = header.set_options_raw(&[2, 4, 5, 170, 4, 2, 1, 3, 3, 7, 1, 0]);
            },
            0,
        );
        self.ip(
            way,
            "TCP SYN with options",
            Ip::new(from, to, TCP, syn),
            way.plain,
        );
        for length in [1, 1300] {
            let data = wire::tcp(
                from,
                to,
                |header| {
                    header.ack = true;
                    header.psh = true;
                    header.ece = true;
                    header.cwr = true;
                },
                length,
            );
            let name = format!("TCP with {length} bytes, ECE and CWR");
            self.ip(way, &name, Ip::new(from, to, TCP, data), way.plain);
        }
        let urgent = wire::tcp(
            from,
            to,
            |header| {
                header.urg = true;
                header.urgent_pointer = 3;
                header.fin = true;
            },
            11,
        );
        self.ip(
            way,
            "TCP URG and FIN",
            Ip::new(from, to, TCP, urgent),
            way.plain,
        );
        let none = wire::tcp(from, to, |_| (), 0);
        self.ip(
            way,
            "TCP without any flag",
            Ip::new(from, to, TCP, none),
            way.plain,
        );
    }

    fn protocols(&mut self, way: &Way) {
        let (from, to) = (way.source, way.destination);
        let payload = overlay_tests::traffic::pattern(56);
        for (name, kind, fast) in [
            ("echo request", 8, way.plain),
            ("echo reply", 0, way.plain),
            ("timestamp", 13, Fast::No),
        ] {
            let message = wire::icmp(kind, 0, [0x12, 0x34, 0, 1], &payload);
            self.ip(
                way,
                &format!("ICMP {name}"),
                Ip::new(from, to, ICMP, message),
                fast,
            );
        }
        // The quoted packet never existed, so that the receiver's connection tracking does not know
        // it.
        let quoted = Ip::udp(to, from, 8).bytes();
        for (name, kind, code, rest) in [
            ("port unreachable", 3, 3, [0; 4]),
            ("fragmentation needed", 3, 4, [0, 0, 4, 176]),
            ("time exceeded", 11, 0, [0; 4]),
        ] {
            let message = wire::icmp(kind, code, rest, &quoted);
            self.ip(
                way,
                &format!("ICMP {name}"),
                Ip::new(from, to, ICMP, message),
                way.plain,
            );
        }
        let inner = Ip::udp(from, to, 20).bytes();
        for (name, protocol, payload) in [
            ("GRE", 47, [&[0, 0, 8, 0], &inner[..]].concat()),
            ("IP in IP", 4, inner.clone()),
            ("SCTP", 132, payload.clone()),
            ("DCCP", 33, payload.clone()),
            ("UDP-Lite", 136, payload.clone()),
            ("ESP", 50, payload.clone()),
            ("protocol 253", 253, payload.clone()),
        ] {
            self.ip(way, name, Ip::new(from, to, protocol, payload), way.plain);
        }
    }

    fn header_fields(&mut self, way: &Way) {
        let (from, to) = (way.source, way.destination);
        for (name, fragment, length, fast) in [
            ("DF", DF, 1400, way.plain),
            ("DF at the limit", DF, 1422, way.plain),
            ("one byte too long", 0, 1423, Fast::No),
            ("one byte too long with DF", DF, 1423, Fast::No),
            ("too long", 0, 1460, Fast::No),
            ("too long with DF", DF, 1460, Fast::No),
            ("the reserved flag", 0x8000, 50, way.plain),
        ] {
            let mut ip = Ip::udp(from, to, length);
            ip.fragment = fragment;
            self.ip(way, name, ip, fast);
        }
        for ttl in [0, 1, 2, 3, 64, 255] {
            let fast = match (way.routed, ttl) {
                (true, 0 | 1) => Fast::No,
                // The other node notices the expiry.
                (true, 2) if way.plain == Fast::Whole => Fast::Half,
                _ => way.plain,
            };
            let mut ip = Ip::udp(from, to, 50);
            ip.ttl = ttl;
            self.ip(way, &format!("TTL {ttl}"), ip, fast);
        }
        for tos in [0x01, 0x02, 0x03, 0xb8, 0xb9, 0xba, 0xbb, 0xfc] {
            let mut ip = Ip::udp(from, to, 50);
            ip.tos = tos;
            self.ip(way, &format!("TOS {tos:#04x}"), ip, way.plain);
        }
        for (name, options) in [
            ("NOP", vec![1, 1, 1, 0]),
            ("router alert", vec![148, 4, 0, 0]),
            (
                "record route",
                vec![7, 15, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            ("loose source route", vec![131, 7, 4, 10, 244, 0, 1, 0]),
            ("an option that runs over", vec![7, 40, 4, 0]),
        ] {
            let mut ip = Ip::udp(from, to, 50);
            ip.options = options;
            self.ip(way, &format!("IP option {name}"), ip, Fast::No);
        }
        let mut foreign = Ip::udp(Ipv4Addr::new(172, 31, 7, 7), to, 50);
        foreign.tos = 0xb8;
        self.ip(way, "source outside the overlay", foreign, Fast::No);
    }

    fn fragments(&mut self, way: &Way) {
        let (from, to) = (way.source, way.destination);
        let id = self.id();
        let whole = wire::udp(from, to, 4001, 4002, 2000);
        let part = |range: std::ops::Range<usize>| {
            let more = if range.end < whole.len() { MF } else { 0 };
            let mut ip = Ip::new(from, to, UDP, whole[range.clone()].to_vec());
            ip.fragment = (range.start / 8) as u16 | more;
            ip.id = id;
            ethernet(way.next_hop, way.mac, IPV4, &ip.bytes())
        };
        let frames = vec![part(0..800), part(800..1600), part(1600..whole.len())];
        self.push(format!("{} fragments", way.name), frames, Fast::No);
    }
}
