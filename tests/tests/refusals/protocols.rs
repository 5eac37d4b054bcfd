//! Protocols inside VXLAN that the overlay does not carry.

use std::net::Ipv6Addr;

use anyhow::{Result, ensure};
use etherparse::{Icmpv6Header, Icmpv6Type, IpNumber, Ipv6FlowLabel, Ipv6Header};
use overlay_tests::frame::{ARP, BROADCAST, Ip, Mac, VXLAN_PORT, arp, ethernet, vxlan};
use overlay_tests::packet::RawSocket;

use crate::case::{End, From, Pod, Shape};
use crate::stage::Stage;

const IPV6: u16 = 0x86dd;
/// The Ethernet type of LLDP (IEEE 802.1AB).
const LLDP: u16 = 0x88cc;
/// "All nodes", and its MAC address (RFC 2464, section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

impl Stage {
    /// Frames of other protocols from an honest peer.
    pub(super) fn other_protocols(&mut self) {
        let remote = self.pods[&Pod::Remote].0;
        let own = self.own().0;
        let (device, peer) = (self.vteps[0].2, self.vteps[1].2);
        let mut question = arp(1, (peer, remote), ([0; 6], own));
        // The length of the payload is that on a wire, which carries no shorter frames.
        question.resize(46, 0);
        for (what, frame) in [
            ("ARP", ethernet(BROADCAST, peer, ARP, &question)),
            (
                "ARP for this node alone",
                ethernet(device, peer, ARP, &question),
            ),
            ("IPv6", ethernet(device, peer, IPV6, &[0x60; 60])),
            ("a router advertisement", advertisement(ALL_NODES_MAC, peer)),
            ("LLDP", ethernet(device, peer, LLDP, &[0; 46])),
            ("LLC", ethernet(device, peer, 46, &[0; 46])),
        ] {
            for shape in [Shape::Plain, Shape::Options, Shape::Fragments(64)] {
                let name = format!("a peer sends VXLAN, {shape:?} around {what}");
                let end = End::Refused(1, &["inner_protocol"]);
                self.add(name, From::Peer, end, |stage, _| {
                    let (to, nic, _) = stage.vteps[0];
                    let (from, sender, _) = stage.vteps[1];
                    let ip = Ip::udp(from, to, VXLAN_PORT, &vxlan(1, &frame));
                    shape.dress(nic, sender, &ip)
                });
            }
        }
    }

    /// A router advertisement from an honest peer has no effect.
    pub(super) fn advertise(&self) -> Result<()> {
        let node = self.lab.node(1);
        for setting in ["all", "flannel.1"] {
            let setting = format!("net/ipv6/conf/{setting}/disable_ipv6=0");
            node.run(["sysctl", "-qw", &setting])?;
        }
        let peer = RawSocket::open(&self.lab.node(2).namespace(), "eth0")?;
        let (to, nic, device) = self.vteps[0];
        let (from, sender, mac) = self.vteps[1];
        for inner in [ALL_NODES_MAC, device] {
            let frame = advertisement(inner, mac);
            let ip = Ip::udp(from, to, VXLAN_PORT, &vxlan(1, &frame));
            for frame in Shape::Plain.dress(nic, sender, &ip) {
                peer.send(&frame)?;
            }
        }
        // What arrives later is looked at later.
        let gateway = self.gateways[0].to_string();
        let answer = self.lab.pod(2, 1).exec(["ping", "-c1", "-W2", &gateway])?;
        ensure!(answer.status.success(), "a ping afterwards gets no answer");
        let routes = node.run(["ip", "-6", "route", "show", "default"])?;
        ensure!(routes.is_empty(), "a default route: {routes}");
        let addresses = node.run(["ip", "-6", "address", "show", "dev", "flannel.1"])?;
        ensure!(addresses.is_empty(), "flannel.1 has addresses: {addresses}");
        Ok(())
    }
}

/// A router advertisement (RFC 4861, section 4.2) with a prefix for address configuration.
fn advertisement(to: Mac, from: Mac) -> Vec<u8> {
    const KIND: u8 = 134;
    const HALF_AN_HOUR: [u8; 2] = 1800_u16.to_be_bytes();
    let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xbad);
    let prefix = Ipv6Addr::new(0x2001, 0xdb8, 0, 0xbad, 0, 0, 0, 0);
    let long = 86_400_u32.to_be_bytes();
    let body = [
        &[0; 8][..],
        // The prefix is on the link, and for address configuration (section 4.6.2).
        &[3, 4, 64, 0xc0],
        &long,
        &long,
        &[0; 4],
        &prefix.octets(),
    ]
    .concat();
    let kind = Icmpv6Type::Unknown {
        type_u8: KIND,
        code_u8: 0,
        bytes5to8: [64, 0, HALF_AN_HOUR[0], HALF_AN_HOUR[1]],
    };
    let (source, destination) = (router.octets(), ALL_NODES.octets());
    let icmp = Icmpv6Header::with_checksum(kind, source, destination, &body)
        .expect("a short message")
        .to_bytes();
    let ip = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: (icmp.len() + body.len()) as u16,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: 255,
        source,
        destination,
    };
    let packet = [&ip.to_bytes()[..], &icmp, &body].concat();
    ethernet(to, from, IPV6, &packet)
}
