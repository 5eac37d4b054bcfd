//! Packets that a pod must not send.

use std::net::Ipv4Addr;

use overlay_tests::frame::{
    self, BROADCAST, IPV4, Ip, SERVICE_VLAN, VLAN, VXLAN_PORT, arp, ethernet, tagged, vxlan,
};

use crate::case::{End, From, POD_SHAPES, Pod, STACK, Shape};
use crate::stage::{SECOND_ADDRESS, SERVICES, Stage};
use crate::{FOREIGN, UNLEASED};

impl Stage {
    /// A pod uses a foreign address.
    pub(super) fn pod_sources(&mut self) {
        let local = self.pods[&Pod::Local].0;
        let remote = self.pods[&Pod::Remote].0;
        let own = self.own().0;
        let subnet = own.octets();
        let vtep = Ipv4Addr::new(subnet[0], subnet[1], subnet[2], 0);
        let unused = Ipv4Addr::new(subnet[0], subnet[1], subnet[2], 250);
        for to in [Pod::Local, Pod::Remote] {
            for shape in POD_SHAPES {
                for (whose, source) in [
                    ("its own", own),
                    ("a local pod's", local),
                    ("a remote pod's", remote),
                    ("an unleased", UNLEASED),
                    ("the gateway's", self.gateways[0]),
                    ("the VTEP's", vtep),
                    ("an unused", unused),
                    ("a foreign", FOREIGN),
                ] {
                    // Every form for one source, every source in the plain form.
                    let sample = matches!(shape, Shape::Plain) || source == local || source == own;
                    if !sample
                        || (to == Pod::Local && source == local && !matches!(shape, Shape::Plain))
                    {
                        continue;
                    }
                    let honest = source == own || source == FOREIGN;
                    let end = match shape {
                        Shape::Stacked => End::Refused(1, &["stacked_vlan"]),
                        _ if honest => End::Delivered(to),
                        _ => End::Refused(1, &["spoofed_source"]),
                    };
                    let name = format!("pod sends from {whose} address to {to:?}, {shape:?}");
                    self.add(name, From::Pod, end, |stage, payload| {
                        let ip = Ip::udp(source, stage.pods[&to].0, 9, payload);
                        shape.dress(stage.next_hop(to), stage.own().1, &ip)
                    });
                }
            }
        }
    }

    /// A pod sends VXLAN, which would seem to come from its node.
    pub(super) fn pod_vxlan(&mut self) {
        let [(n1, ..), (n2, ..)] = self.vteps;
        let own = self.own().0;
        for (what, source, to, node, reasons) in [
            ("its own node", own, n1, 1, &["pod_vxlan"][..]),
            ("another node", own, n2, 1, &["pod_vxlan"]),
            ("its own node in a peer's name", n2, n1, 1, &["pod_vxlan"]),
            ("its gateway", own, self.gateways[0], 1, &["pod_vxlan"]),
            (
                "its own node by a Service",
                own,
                SERVICES[0],
                1,
                &["pod_vxlan"],
            ),
            (
                "another node by a Service",
                own,
                SERVICES[1],
                1,
                &["pod_vxlan"],
            ),
            (
                "another node's gateway",
                own,
                self.gateways[1],
                2,
                &["unknown_vtep"],
            ),
            (
                "another address of another node",
                own,
                SECOND_ADDRESS,
                2,
                &["other_address"],
            ),
        ] {
            for shape in POD_SHAPES {
                let reasons = match shape {
                    Shape::Stacked => End::Refused(1, &["stacked_vlan"]),
                    _ => End::Refused(node, reasons),
                };
                let name = format!("pod sends VXLAN to {what}, {shape:?}");
                self.add(name, From::Pod, reasons, |stage, payload| {
                    // To the pod on that node, with the source address of its neighbour there or
                    // here.
                    let (victim, claimed) = if node == 1 && to == n1 {
                        (Pod::Local, stage.pods[&Pod::Remote].0)
                    } else {
                        (Pod::Remote, stage.pods[&Pod::Local].0)
                    };
                    let inner = Ip::udp(claimed, stage.pods[&victim].0, 9, payload).packet();
                    let receiver = usize::from(victim == Pod::Remote);
                    let inner = ethernet(stage.vteps[receiver].2, [2, 0, 0, 0, 0, 1], IPV4, &inner);
                    let outer = Ip::udp(source, to, VXLAN_PORT, &vxlan(1, &inner));
                    shape.dress(stage.bridge, stage.own().1, &outer)
                });
            }
        }
    }

    /// A pod announces a foreign address.
    pub(super) fn pod_arp(&mut self) {
        let (own, own_mac) = self.own();
        let local = self.pods[&Pod::Local];
        let remote = self.pods[&Pod::Remote].0;
        for (whose, sender) in [
            ("its own", own),
            ("no", Ipv4Addr::UNSPECIFIED),
            ("a local pod's", local.0),
            ("the gateway's", self.gateways[0]),
            ("a remote pod's", remote),
            ("an unleased", UNLEASED),
        ] {
            for operation in [1, 2] {
                for tags in [&[][..], &[(VLAN, 0)], &[(SERVICE_VLAN, 0)], &STACK] {
                    let honest = sender == own || sender.is_unspecified();
                    let end = match tags.len() {
                        2 => End::Refused(1, &["stacked_vlan"]),
                        _ if honest => End::Delivered(Pod::Local),
                        _ => End::Refused(1, &["spoofed_arp"]),
                    };
                    let name =
                        format!("pod's ARP {operation} with {whose} address, tags {tags:x?}");
                    self.add(name, From::Pod, end, |_, payload| {
                        let mut packet = arp(operation, (own_mac, sender), (local.1, local.0));
                        packet.extend(payload);
                        vec![tagged(
                            &ethernet(BROADCAST, own_mac, frame::ARP, &packet),
                            tags,
                        )]
                    });
                }
            }
        }
    }
}
