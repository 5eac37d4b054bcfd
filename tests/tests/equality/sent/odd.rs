//! Malformed packets that a pod sends, and packets of other protocols than IPv4.

use std::net::Ipv4Addr;

use super::Way;
use crate::corpus::{Corpus, Fast};
use crate::wire::{
    self, ARP, BROADCAST, EXPERIMENT, IPV4, IPV6, Ip, NOBODY, SERVICE_VLAN, VLAN, ethernet, tagged,
};

impl Corpus {
    pub(super) fn malformed(&mut self, way: &Way) {
        let (from, to) = (way.source, way.destination);
        let plain = || Ip::udp(from, to, 50);
        for (name, change) in [
            (
                "wrong header checksum",
                Ip {
                    checksum_off_by: 1,
                    ..plain()
                },
            ),
            (
                "shorter than the frame",
                Ip {
                    length_off_by: -7,
                    ..plain()
                },
            ),
            (
                "longer than the frame",
                Ip {
                    length_off_by: 7,
                    ..plain()
                },
            ),
            (
                "no longer than its header",
                Ip {
                    length_off_by: -58,
                    ..plain()
                },
            ),
            (
                "shorter than its header",
                Ip {
                    length_off_by: -60,
                    ..plain()
                },
            ),
            (
                "version 5",
                Ip {
                    version_and_length: Some(0x55),
                    ..plain()
                },
            ),
            (
                "version 6",
                Ip {
                    version_and_length: Some(0x65),
                    ..plain()
                },
            ),
            (
                "header of 16 bytes",
                Ip {
                    version_and_length: Some(0x44),
                    ..plain()
                },
            ),
            (
                "header beyond the end",
                Ip {
                    version_and_length: Some(0x4f),
                    payload: vec![0; 12],
                    ..plain()
                },
            ),
            (
                "UDP cut short",
                Ip {
                    payload: vec![15, 161],
                    ..plain()
                },
            ),
            (
                "nothing above IP",
                Ip {
                    payload: Vec::new(),
                    ..plain()
                },
            ),
        ] {
            self.ip(way, name, change, Fast::No);
        }
    }

    pub(super) fn frames(&mut self, way: &Way) {
        let (from, to) = (way.source, way.destination);
        let mut second = Ip::udp(from, to, 50);
        second.id = self.id();
        let frame = ethernet(way.next_hop, [2, 0xaa, 0, 0, 0, 7], IPV4, &second.bytes());
        self.push(
            format!("{} second MAC address", way.name),
            vec![frame],
            Fast::No,
        );

        for (name, mac, address) in [
            ("broadcast MAC", BROADCAST, to),
            ("multicast MAC", [1, 0, 0x5e, 0, 0, 99], to),
            (
                "multicast",
                [1, 0, 0x5e, 0, 0, 99],
                Ipv4Addr::new(224, 0, 0, 99),
            ),
            ("limited broadcast", BROADCAST, Ipv4Addr::BROADCAST),
            ("nobody's MAC", NOBODY, to),
            ("own address", way.mac, from),
        ] {
            let mut ip = Ip::udp(from, address, 50);
            ip.id = self.id();
            let frame = ethernet(mac, way.mac, IPV4, &ip.bytes());
            self.push(format!("{} {name}", way.name), vec![frame], Fast::No);
        }
        for (name, kind, tag) in [
            ("VLAN 0", VLAN, 0),
            ("VLAN 0 with priority", VLAN, 0xa000),
            ("VLAN 5", VLAN, 5),
            ("VLAN 5 with priority", VLAN, 0xe005),
            ("service VLAN 5", SERVICE_VLAN, 5),
        ] {
            let mut ip = Ip::udp(from, to, 50);
            ip.id = self.id();
            let frame = ethernet(way.next_hop, way.mac, kind, &tagged(tag, IPV4, &ip.bytes()));
            self.push(format!("{} {name}", way.name), vec![frame], Fast::No);
        }
        let own = (way.mac, from);
        let nobody = [0; 6];
        for (name, mac, packet) in [
            ("ARP request", BROADCAST, wire::arp(1, own, (nobody, to))),
            (
                "ARP announcement",
                BROADCAST,
                wire::arp(1, own, (nobody, from)),
            ),
            (
                "ARP reply",
                way.next_hop,
                wire::arp(2, own, (way.next_hop, to)),
            ),
        ] {
            self.other(way, name, mac, ARP, packet);
        }
        self.other(
            way,
            "experimental protocol",
            way.next_hop,
            EXPERIMENT,
            vec![7; 50],
        );
        self.other(
            way,
            "bridge's own group",
            [1, 0x80, 0xc2, 0, 0, 0x0e],
            EXPERIMENT,
            vec![7; 50],
        );
        let mut ipv6 = vec![0x60, 0, 0, 0, 0, 4, 59, 64];
        ipv6.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1]);
        ipv6.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 2]);
        self.other(way, "IPv6", way.next_hop, IPV6, ipv6);
    }
}
