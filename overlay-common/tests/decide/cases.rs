//! A packet for every way a decision can end, and for what must not change it.

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::{EtherType, IcmpEchoHeader, Icmpv4Type, IpEcn};
use overlay_common::decide::{FromNetwork, FromPod, Leaving, from_network, from_pod, leaving};
use overlay_common::packet::Frame;
use overlay_common::schema::{
    CONFIG_ACTIVE, CONFIG_AGGREGATES_TO_KERNEL, CONFIG_PEERS_COMPLETE, CONFIG_SHARED_PORT, FlowKey,
    POD_FORWARDS, POD_KERNEL_PATH,
};
use overlay_common::{Hook, V4, Verdict};

use super::frames::{End, Ipv4Frame, arp, ethernet, tagged, vxlan};
use super::world::*;

/// How a decision ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The fast path takes it.
    Fast(Verdict),
    /// The kernel gets it, and may translate it.
    Pass(Verdict),
    /// The kernel gets it as plain pod-to-pod traffic.
    PassPlain(Verdict),
    /// It is dropped.
    Refuse(Verdict),
    /// It leaves, and the stack owns its flow.
    Remember(FlowKey<V4>),
}

impl Outcome {
    /// The verdict that is counted.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Fast(verdict)
            | Self::Pass(verdict)
            | Self::PassPlain(verdict)
            | Self::Refuse(verdict) => verdict,
            Self::Remember(_) => Verdict::Remembered,
        }
    }
}

use Outcome::{Fast, Pass, PassPlain, Refuse, Remember};

/// A packet at a hook of a made-up node.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub hook: Hook,
    pub world: World,
    pub frame: Vec<u8>,
    pub ifindex: u32,
    pub gso_size: u32,
    pub vlan: Option<u16>,
    pub checksum_verified: bool,
    /// Whether a program of ours handed it over as plain pod-to-pod traffic.
    pub plain: bool,
    pub want: Outcome,
}

impl Case {
    pub fn new(hook: Hook, name: &'static str, frame: Vec<u8>, want: Outcome) -> Self {
        Self {
            name,
            hook,
            world: World::new(),
            frame,
            ifindex: if hook == Hook::NetIn { NIC } else { VETH_A },
            gso_size: 0,
            vlan: None,
            checksum_verified: false,
            plain: false,
            want,
        }
    }

    fn world(mut self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut self.world);
        self
    }

    fn at(self, ifindex: u32) -> Self {
        Self { ifindex, ..self }
    }

    fn segments(self, gso_size: u32) -> Self {
        Self { gso_size, ..self }
    }

    fn tag(self, tag: u16) -> Self {
        Self {
            vlan: Some(tag),
            ..self
        }
    }

    fn verified(self) -> Self {
        Self {
            checksum_verified: true,
            ..self
        }
    }

    fn plain(self) -> Self {
        Self {
            plain: true,
            ..self
        }
    }

    /// The packet as the decision sees it.
    pub fn packet(&self) -> Frame<'_> {
        let mut packet = Frame::new(&self.frame);
        packet.gso_size = self.gso_size;
        packet.vlan = self.vlan;
        packet.to_this_host = self.frame.starts_with(&NIC_MAC);
        packet.ifindex = self.ifindex;
        packet.checksum_verified = self.checksum_verified;
        packet
    }

    /// What the decision says.
    pub fn decide(&self) -> Outcome {
        let packet = self.packet();
        let passed = |pass: overlay_common::decide::Pass| {
            if pass.plain {
                PassPlain(pass.verdict)
            } else {
                Pass(pass.verdict)
            }
        };
        match self.hook {
            Hook::PodIn => match from_pod::<V4, _, _>(&packet, &self.world) {
                FromPod::Redirect(_) => Fast(Verdict::Redirected),
                FromPod::Encapsulate { .. } => Fast(Verdict::Encapsulated),
                FromPod::Pass(pass) => passed(pass),
                FromPod::Refuse(verdict) => Refuse(verdict),
            },
            Hook::NetIn => match from_network::<V4, _, _>(&packet, &self.world) {
                FromNetwork::Decapsulate { .. } => Fast(Verdict::Decapsulated),
                FromNetwork::Pass(pass) => passed(pass),
                FromNetwork::Refuse(verdict) => Refuse(verdict),
            },
            Hook::PodOut | Hook::VtepOut => {
                match leaving::<V4, _, _>(&packet, &self.world, self.hook, self.plain) {
                    Leaving::Remember(key) => Remember(key),
                    Leaving::Pass(verdict) => Pass(verdict),
                }
            }
        }
    }
}

/// Every case.
pub fn all() -> Vec<Case> {
    [
        from_pods(),
        spoofed(),
        from_networks(),
        forged(),
        leavings(),
    ]
    .concat()
}

/// The bytes of a frame after a change that no checksum or length makes up for.
fn damaged(frame: &Ipv4Frame, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = frame.bytes();
    change(&mut bytes);
    bytes
}

/// A TCP flow between two ends.
fn flow(a: End, b: End) -> FlowKey<V4> {
    FlowKey::new(a, b, 6)
}

fn owned(a: End, b: End) -> impl FnOnce(&mut World) {
    move |world| {
        world.flows.insert(flow(a, b));
    }
}

fn time_exceeded() -> Icmpv4Type {
    Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit)
}

fn echo() -> Icmpv4Type {
    Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 1 })
}

/// What a pod sends honestly.
fn from_pods() -> Vec<Case> {
    use Verdict::*;
    let case = |name, frame: Vec<u8>, want| Case::new(Hook::PodIn, name, frame, want);
    let remote = || routed(POD_REMOTE);
    let icmp = |message| {
        Ipv4Frame::icmp(POD_A, POD_REMOTE, message)
            .sent_by(MAC_A)
            .sent_to(BRIDGE_MAC)
    };
    let long = || routed(POD_REMOTE).bytes().len() as u32 - 14;
    vec![
        case("to a pod of this node", local().bytes(), Fast(Redirected)),
        case("to a peer's pod", remote().bytes(), Fast(Encapsulated)),
        case("an echo request", icmp(echo()).bytes(), Fast(Encapsulated)),
        case(
            "a protocol without ports",
            Ipv4Frame::protocol(POD_A, POD_REMOTE, 50, vec![0; 8])
                .sent_by(MAC_A)
                .sent_to(BRIDGE_MAC)
                .bytes(),
            Fast(Encapsulated),
        ),
        case("no configuration", remote().bytes(), Pass(Inactive)).world(|w| w.config = None),
        case(
            "switched off, to a peer",
            remote().bytes(),
            PassPlain(Inactive),
        )
        .world(|w| w.clear_flags(CONFIG_ACTIVE)),
        case(
            "switched off, elsewhere",
            routed(OUTSIDE).bytes(),
            Pass(NotOverlay),
        )
        .world(|w| w.clear_flags(CONFIG_ACTIVE)),
        case(
            "an unknown interface",
            remote().bytes(),
            Pass(UnknownEndpoint),
        )
        .at(VETH_UNKNOWN),
        case(
            "a frame that ends in its header",
            remote().bytes()[..15].to_vec(),
            Pass(Malformed),
        ),
        case(
            "an IP header that ends early",
            remote().bytes()[..33].to_vec(),
            Pass(Malformed),
        ),
        case(
            "IP version 6 behind type 0x0800",
            damaged(&remote(), |b| b[14] = 0x65),
            Pass(Malformed),
        ),
        case(
            "IPv6",
            ethernet(MAC_A, BRIDGE_MAC, EtherType::IPV6.0, &[0x60; 40]),
            Pass(NotIp),
        ),
        case(
            "ARP for its own address",
            arp(MAC_A, POD_A, POD_B),
            Pass(NotIp),
        ),
        case(
            "ARP from outside the overlay",
            arp(MAC_A, OUTSIDE, POD_B),
            Pass(NotIp),
        ),
        case("an ARP probe", arp(MAC_A, [0; 4], POD_A), Pass(NotIp)),
        case("a VLAN of its own", remote().bytes(), Pass(VlanTag)).tag(7),
        case(
            "a network in a VLAN of its own",
            tagged(remote().bytes(), 0),
            Pass(VlanTag),
        )
        .tag(7),
        case("a priority tag", remote().bytes(), PassPlain(VlanTag)).tag(0xe000),
        case(
            "a source outside the overlay",
            remote().with(|ip| ip.source = OUTSIDE).bytes(),
            Pass(ForeignSource),
        ),
        case(
            "to everybody",
            remote().sent_to([0xff; 6]).bytes(),
            Pass(Group),
        ),
        case(
            "to a group",
            remote().sent_to([1, 0, 0x5e, 0, 0, 1]).bytes(),
            Pass(Group),
        ),
        case(
            "out of the overlay",
            routed(OUTSIDE).bytes(),
            Pass(NotOverlay),
        ),
        case(
            "to an unlisted pod here",
            routed(POD_UNLISTED).sent_to(MAC_B).bytes(),
            PassPlain(NotOverlay),
        ),
        case(
            "to the gateway",
            routed([10, 244, 1, 1]).bytes(),
            Pass(NotOverlay),
        ),
        case(
            "to an unlisted subnet",
            routed(POD_NOWHERE).bytes(),
            PassPlain(NotOverlay),
        ),
        case(
            "from a pod on the kernel path",
            remote().bytes(),
            PassPlain(PodKernelPath),
        )
        .world(|w| {
            if let Some(endpoint) = w.endpoints.get_mut(&VETH_A) {
                endpoint.flags = POD_KERNEL_PATH;
            }
        }),
        case(
            "to a pod on the kernel path",
            local().bytes(),
            PassPlain(PodKernelPath),
        )
        .world(|w| w.pod(POD_B).flags = POD_KERNEL_PATH),
        case(
            "from a second MAC address",
            remote().sent_by(MAC_B).bytes(),
            PassPlain(ForeignMac),
        ),
        case(
            "to a neighbour by way of the gateway",
            routed(POD_B).bytes(),
            PassPlain(ForeignMac),
        ),
        case(
            "to a peer, not by the gateway",
            remote().sent_to(MAC_B).bytes(),
            PassPlain(ForeignMac),
        ),
        case(
            "a first fragment",
            remote().fragment(0, true).bytes(),
            PassPlain(Fragment),
        ),
        case(
            "a later fragment",
            remote().fragment(3, false).bytes(),
            PassPlain(Fragment),
        ),
        case("options", remote().options().bytes(), PassPlain(Options)),
        case(
            "a wrong header checksum",
            damaged(&remote(), |b| b[24] ^= 1),
            PassPlain(Malformed),
        ),
        case(
            "padding",
            damaged(&remote(), |b| b.extend([0; 6])),
            PassPlain(Malformed),
        ),
        case(
            "a frame cut short",
            damaged(&remote(), |b| b.truncate(50)),
            PassPlain(Malformed),
        ),
        case(
            "no room for ports",
            Ipv4Frame::protocol(POD_A, POD_REMOTE, 6, vec![0; 3])
                .sent_by(MAC_A)
                .sent_to(BRIDGE_MAC)
                .bytes(),
            PassPlain(Malformed),
        ),
        case(
            "an ICMP error",
            icmp(time_exceeded()).bytes(),
            PassPlain(IcmpError),
        ),
        case(
            "an ICMP error about the path's MTU",
            icmp(Icmpv4Type::DestinationUnreachable(
                DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 },
            ))
            .bytes(),
            PassPlain(IcmpError),
        ),
        case(
            "a flow of the stack",
            remote().bytes(),
            PassPlain(StackOwned),
        )
        .world(owned((POD_A, 40000), (POD_REMOTE, 80))),
        case(
            "a flow of the stack, seen from its other end",
            remote().bytes(),
            PassPlain(StackOwned),
        )
        .world(owned((POD_REMOTE, 80), (POD_A, 40000))),
        case(
            "a neighbour of the stack's flow",
            remote().bytes(),
            Fast(Encapsulated),
        )
        .world(owned((POD_A, 40001), (POD_REMOTE, 80))),
        case(
            "the last hop, routed",
            remote().with(|ip| ip.time_to_live = 1).bytes(),
            PassPlain(TtlExpired),
        ),
        case(
            "the last hop but one",
            remote().with(|ip| ip.time_to_live = 2).bytes(),
            Fast(Encapsulated),
        ),
        case(
            "the last hop, bridged",
            local().with(|ip| ip.time_to_live = 1).bytes(),
            Fast(Redirected),
        ),
        case(
            "just as long as the path allows",
            remote().bytes(),
            Fast(Encapsulated),
        )
        .world(move |w| w.peers.values_mut().for_each(|peer| peer.mtu = long())),
        case(
            "a byte longer than the path allows",
            remote().bytes(),
            PassPlain(TooLong),
        )
        .world(move |w| w.peers.values_mut().for_each(|peer| peer.mtu = long() - 1)),
        case(
            "a byte longer than the pod takes",
            local().bytes(),
            PassPlain(TooLong),
        )
        .world(move |w| w.pod(POD_B).mtu = long() - 1),
        // 20 of IP and 20 of TCP go with every segment.
        case("segments that fit", remote().bytes(), Fast(Encapsulated)).segments(MTU - 40),
        case(
            "segments that do not fit",
            remote().bytes(),
            PassPlain(TooLong),
        )
        .segments(MTU - 39),
        case(
            "segments of a protocol that is not segmented",
            Ipv4Frame::protocol(POD_A, POD_REMOTE, 50, vec![0; 8])
                .sent_by(MAC_A)
                .sent_to(BRIDGE_MAC)
                .bytes(),
            PassPlain(Aggregate),
        )
        .segments(8),
        case(
            "a peer with a longer subnet",
            routed([10, 244, 4, 130]).bytes(),
            Fast(Encapsulated),
        )
        .world(halves),
        case(
            "the half of that subnet that is no peer's",
            routed([10, 244, 4, 1]).bytes(),
            PassPlain(NotOverlay),
        )
        .world(halves),
        case(
            "UDP to a stranger's VXLAN port",
            Ipv4Frame::udp((POD_A, 50000), (OUTSIDE, PORT), &[0; 16])
                .sent_by(MAC_A)
                .sent_to(BRIDGE_MAC)
                .bytes(),
            Pass(NotOverlay),
        ),
        case(
            "UDP to another port of a node",
            Ipv4Frame::udp((POD_A, 50000), (PEER_VTEP, 53), &[0; 16])
                .sent_by(MAC_A)
                .sent_to(BRIDGE_MAC)
                .bytes(),
            Pass(NotOverlay),
        ),
    ]
}

/// A peer with half of a /24: everybody is looked up under the longer mask then.
fn halves(world: &mut World) {
    world.config().peer_mask = [255, 255, 255, 128];
    world.peers.insert([10, 244, 4, 128], peer(PEER_VTEP));
}

/// What a pod sends in somebody else's name: refused, whatever else is odd about it.
fn spoofed() -> Vec<Case> {
    use Verdict::*;
    let case = |name, frame: Vec<u8>, want| Case::new(Hook::PodIn, name, frame, want);
    let forged = || routed(POD_REMOTE).with(|ip| ip.source = POD_B);
    let to_node = |node| {
        Ipv4Frame::udp((POD_A, 50000), (node, PORT), &vxlan(VNI, &inner().bytes()))
            .sent_by(MAC_A)
            .sent_to(BRIDGE_MAC)
    };
    vec![
        case(
            "another pod's source",
            forged().bytes(),
            Refuse(SpoofedSource),
        ),
        case(
            "the gateway's source",
            routed(POD_B).with(|ip| ip.source = [10, 244, 1, 1]).bytes(),
            Refuse(SpoofedSource),
        ),
        case(
            "a remote pod's source",
            routed(OUTSIDE).with(|ip| ip.source = POD_REMOTE).bytes(),
            Refuse(SpoofedSource),
        ),
        case(
            "spoofed in a first fragment",
            forged().fragment(0, true).bytes(),
            Refuse(SpoofedSource),
        ),
        case(
            "spoofed in a later fragment",
            forged().fragment(9, false).bytes(),
            Refuse(SpoofedSource),
        ),
        case(
            "spoofed with options",
            forged().options().bytes(),
            Refuse(SpoofedSource),
        ),
        case(
            "spoofed with a priority tag",
            forged().bytes(),
            Refuse(SpoofedSource),
        )
        .tag(0),
        case(
            "spoofed behind two priority tags",
            tagged(forged().bytes(), 0),
            Refuse(StackedVlan),
        )
        .tag(0),
        case(
            "spoofed behind many priority tags",
            tagged(tagged(forged().bytes(), 0), 0xe000),
            Refuse(StackedVlan),
        )
        .tag(0),
        case(
            "ARP for another's address behind two priority tags",
            tagged(arp(MAC_A, POD_B, POD_A), 0),
            Refuse(StackedVlan),
        )
        .tag(0),
        // A virtual device need not take the first tag off for the program.
        case(
            "spoofed behind a tag that the kernel left in place",
            tagged(forged().bytes(), 0),
            Refuse(StackedVlan),
        ),
        case(
            "spoofed to everybody",
            forged().sent_to([0xff; 6]).bytes(),
            Refuse(SpoofedSource),
        ),
        case(
            "spoofed in a wrong checksum",
            damaged(&forged(), |b| b[24] ^= 1),
            Refuse(SpoofedSource),
        ),
        case(
            "spoofed while switched off",
            forged().bytes(),
            Refuse(SpoofedSource),
        )
        .world(|w| w.config().flags = 0),
        case(
            "spoofed from a pod on the kernel path",
            forged().bytes(),
            Refuse(SpoofedSource),
        )
        .world(|w| {
            if let Some(endpoint) = w.endpoints.get_mut(&VETH_A) {
                endpoint.flags = POD_KERNEL_PATH;
            }
        }),
        case(
            "spoofed in a flow of the stack",
            forged().bytes(),
            Refuse(SpoofedSource),
        )
        .world(owned((POD_B, 40000), (POD_REMOTE, 80))),
        case(
            "spoofed in a super-packet",
            forged().bytes(),
            Refuse(SpoofedSource),
        )
        .segments(1400),
        case(
            "ARP for another pod's address",
            arp(MAC_A, POD_B, POD_A),
            Refuse(SpoofedArp),
        ),
        case(
            "ARP for the gateway's address",
            arp(MAC_A, [10, 244, 1, 1], POD_A),
            Refuse(SpoofedArp),
        ),
        case(
            "ARP for another's address while switched off",
            arp(MAC_A, POD_B, POD_A),
            Refuse(SpoofedArp),
        )
        .world(|w| w.config().flags = 0),
        case(
            "ARP for another's address with a priority tag",
            arp(MAC_A, POD_B, POD_A),
            Refuse(SpoofedArp),
        )
        .tag(0),
        case(
            "VXLAN to a peer",
            to_node(PEER_VTEP).bytes(),
            Refuse(PodVxlan),
        ),
        case(
            "VXLAN to this node",
            to_node(VTEP).bytes(),
            Refuse(PodVxlan),
        ),
        case(
            "VXLAN in a first fragment",
            to_node(PEER_VTEP).fragment(0, true).bytes(),
            Refuse(PodVxlan),
        ),
        case(
            "VXLAN with options",
            to_node(PEER_VTEP).options().bytes(),
            Refuse(PodVxlan),
        ),
        case(
            "VXLAN while switched off",
            to_node(VTEP).bytes(),
            Refuse(PodVxlan),
        )
        .world(|w| w.config().flags = 0),
        case(
            "VXLAN from a source outside the overlay",
            to_node(VTEP).with(|ip| ip.source = OUTSIDE).bytes(),
            Refuse(PodVxlan),
        ),
    ]
}

/// What the network sends honestly.
fn from_networks() -> Vec<Case> {
    use Verdict::*;
    let case = |name, frame: Vec<u8>, want| Case::new(Hook::NetIn, name, frame, want);
    let packet = || outer(&inner().bytes());
    let with_inner = |inner: Ipv4Frame| outer(&inner.bytes());
    let ecn = |outside: u8, inside: u8| {
        let mark = |ecn| {
            move |ip: &mut etherparse::Ipv4Header| {
                ip.ecn = IpEcn::try_new(ecn).expect("two bits");
            }
        };
        outer(&inner().with(mark(inside)).bytes())
            .with(mark(outside))
            .bytes()
    };
    let short = |len: usize| {
        let inner = inner().bytes();
        carrying(&vxlan(VNI, &inner)[..len]).bytes()
    };
    vec![
        case(
            "for a pod of this node",
            packet().bytes(),
            Fast(Decapsulated),
        ),
        case("without configuration", packet().bytes(), Pass(Inactive)).world(|w| w.config = None),
        case("switched off", packet().bytes(), PassPlain(Inactive))
            .world(|w| w.clear_flags(CONFIG_ACTIVE)),
        case(
            "ARP on the underlay",
            arp(PEER_NIC_MAC, PEER_VTEP, VTEP),
            Pass(NotVxlan),
        ),
        case("a frame without a header", vec![0; 15], Pass(NotVxlan)),
        case(
            "an IP header that ends early",
            packet().bytes()[..33].to_vec(),
            Pass(NotVxlan),
        ),
        case(
            "a UDP header that ends early",
            packet().bytes()[..41].to_vec(),
            Pass(NotVxlan),
        ),
        case(
            "TCP",
            Ipv4Frame::tcp((PEER_VTEP, 50000), (VTEP, PORT), &[0; 60])
                .sent_by(PEER_NIC_MAC)
                .sent_to(NIC_MAC)
                .bytes(),
            Pass(NotVxlan),
        ),
        case(
            "another port",
            damaged(&packet(), |b| b[37] ^= 1),
            Pass(NotVxlan),
        ),
        case(
            "a later fragment of something",
            packet().fragment(4, false).bytes(),
            Pass(NotVxlan),
        ),
        case("another network's", packet().bytes(), Pass(NotForUs)).tag(7),
        case(
            "another machine's",
            packet().sent_to(PEER_NIC_MAC).bytes(),
            Pass(NotForUs),
        ),
        case(
            "another address of this machine",
            packet().with(|ip| ip.destination = STRANGER).bytes(),
            Pass(NotForUs),
        ),
        case("VXLAN that ends in its header", short(7), Pass(Malformed)),
        case("VXLAN without a frame", short(8), Pass(Malformed)),
        case(
            "VXLAN with a cut frame",
            short(8 + 14 + 19),
            Pass(Malformed),
        ),
        case(
            "a flag that only extensions set",
            damaged(&packet(), |b| b[42] |= 0x04),
            Pass(VxlanExtension),
        ),
        case(
            "no valid VNI",
            damaged(&packet(), |b| b[42] = 0),
            Pass(VxlanExtension),
        ),
        case(
            "a reserved bit",
            damaged(&packet(), |b| b[49] = 1),
            Pass(VxlanExtension),
        ),
        case(
            "a VNI on a shared port",
            damaged(&packet(), |b| b[48] = 9),
            Pass(ForeignVni),
        )
        .world(|w| w.set_flags(CONFIG_SHARED_PORT)),
        case(
            "ARP from a peer",
            outer(&arp(PEER_VTEP_MAC, POD_REMOTE, POD_A)).bytes(),
            Pass(NotIp),
        ),
        case(
            "a peer's own address",
            with_inner(between((OUTSIDE, 80), (POD_A, 40000))).bytes(),
            Pass(ForeignSource),
        ),
        case(
            "an unknown lease",
            with_inner(between((POD_NOWHERE, 80), (POD_A, 40000))).bytes(),
            Pass(PeersIncomplete),
        )
        .world(|w| w.clear_flags(CONFIG_PEERS_COMPLETE)),
        case(
            "for an unlisted pod",
            with_inner(between((POD_REMOTE, 80), (POD_UNLISTED, 40000))).bytes(),
            Pass(NotOverlay),
        ),
        case("a priority tag", packet().bytes(), PassPlain(VlanTag)).tag(0xe000),
        case(
            "for a pod on the kernel path",
            packet().bytes(),
            PassPlain(PodKernelPath),
        )
        .world(|w| w.pod(POD_A).flags = POD_KERNEL_PATH),
        case(
            "an outer first fragment",
            packet().fragment(0, true).bytes(),
            PassPlain(Fragment),
        ),
        case(
            "an inner first fragment",
            with_inner(inner().fragment(0, true)).bytes(),
            PassPlain(Fragment),
        ),
        case(
            "an inner later fragment",
            with_inner(inner().fragment(5, false)).bytes(),
            PassPlain(Fragment),
        ),
        case(
            "outer options",
            packet().options().bytes(),
            PassPlain(Options),
        ),
        case(
            "inner options",
            with_inner(inner().options()).bytes(),
            PassPlain(Options),
        ),
        case(
            "a wrong outer checksum",
            damaged(&packet(), |b| b[24] ^= 1),
            PassPlain(Malformed),
        ),
        case(
            "a wrong inner checksum",
            damaged(&packet(), |b| b[64 + 10] ^= 1),
            PassPlain(Malformed),
        ),
        case(
            "padding",
            damaged(&packet(), |b| b.push(0)),
            PassPlain(Malformed),
        ),
        case(
            "a UDP length that is not the packet's",
            damaged(&packet(), |b| b[39] ^= 1),
            PassPlain(Malformed),
        ),
        case(
            "padding inside",
            outer(&damaged(&inner(), |b| b.push(0))).bytes(),
            PassPlain(Malformed),
        ),
        case(
            "a cut packet inside",
            outer(&damaged(&inner(), |b| b.truncate(60))).bytes(),
            PassPlain(Malformed),
        ),
        case(
            "no room for ports inside",
            with_inner(
                Ipv4Frame::protocol(POD_REMOTE, POD_A, 6, vec![0; 3])
                    .sent_by(PEER_VTEP_MAC)
                    .sent_to(VTEP_MAC),
            )
            .bytes(),
            PassPlain(Malformed),
        ),
        case(
            "an outer checksum that nobody verified",
            damaged(&packet(), |b| b[41] = 1),
            PassPlain(OuterChecksum),
        ),
        case(
            "an outer checksum that the NIC verified",
            damaged(&packet(), |b| b[41] = 1),
            Fast(Decapsulated),
        )
        .verified(),
        case(
            "to another device's MAC address",
            with_inner(inner().sent_to(MAC_A)).bytes(),
            PassPlain(ForeignMac),
        ),
        case(
            "from our own MAC address",
            with_inner(inner().sent_by(VTEP_MAC)).bytes(),
            PassPlain(ForeignMac),
        ),
        case(
            "the last hop",
            with_inner(inner().with(|ip| ip.time_to_live = 1)).bytes(),
            PassPlain(TtlExpired),
        ),
        case(
            "the last outer hop",
            packet().with(|ip| ip.time_to_live = 1).bytes(),
            Fast(Decapsulated),
        ),
        case("a super-packet", packet().bytes(), Fast(Decapsulated)).segments(MTU - 40),
        case(
            "a super-packet for a pod that forwards",
            packet().bytes(),
            PassPlain(Aggregate),
        )
        .world(|w| w.pod(POD_A).flags = POD_FORWARDS)
        .segments(MTU - 40),
        case(
            "a super-packet that is the kernel's",
            packet().bytes(),
            PassPlain(Aggregate),
        )
        .world(|w| w.set_flags(CONFIG_AGGREGATES_TO_KERNEL))
        .segments(MTU - 40),
        case(
            "a small packet for a pod that forwards",
            packet().bytes(),
            Fast(Decapsulated),
        )
        .world(|w| w.pod(POD_A).flags = POD_FORWARDS),
        case(
            "segments that do not fit",
            packet().bytes(),
            PassPlain(TooLong),
        )
        .segments(MTU - 39),
        case(
            "longer than the pod takes",
            packet().bytes(),
            PassPlain(TooLong),
        )
        .world(|w| w.pod(POD_A).mtu = 40),
        case(
            "an ICMP error",
            with_inner(
                Ipv4Frame::icmp(POD_REMOTE, POD_A, time_exceeded())
                    .sent_by(PEER_VTEP_MAC)
                    .sent_to(VTEP_MAC),
            )
            .bytes(),
            PassPlain(IcmpError),
        ),
        case(
            "a flow of the stack",
            packet().bytes(),
            PassPlain(StackOwned),
        )
        .world(owned((POD_A, 40000), (POD_REMOTE, 80))),
        case("congestion on the way", ecn(0b11, 0b10), Fast(Decapsulated)),
        case(
            "congestion before the tunnel",
            ecn(0b10, 0b11),
            Fast(Decapsulated),
        ),
        case(
            "congestion where nobody asked for it",
            ecn(0b11, 0b00),
            PassPlain(EcnPair),
        ),
        case(
            "ECN fields that no encapsulation makes",
            ecn(0b00, 0b01),
            PassPlain(EcnPair),
        ),
    ]
}

/// What the network sends in somebody else's name: refused, whatever else is odd about it.
fn forged() -> Vec<Case> {
    use Verdict::*;
    let case = |name, frame: Vec<u8>, want| Case::new(Hook::NetIn, name, frame, want);
    let stranger = || outer(&inner().bytes()).with(|ip| ip.source = STRANGER);
    // A pod of the other peer, sent by the peer.
    let foreign = || between((POD_OTHER, 80), (POD_A, 40000));
    let short = |len: usize| {
        carrying(&vxlan(VNI, &inner().bytes())[..len])
            .fragment(0, true)
            .bytes()
    };
    vec![
        case("from a stranger", stranger().bytes(), Refuse(UnknownVtep)),
        case(
            "from a stranger, switched off",
            stranger().bytes(),
            Refuse(UnknownVtep),
        )
        .world(|w| w.config().flags = 0),
        case(
            "from a stranger, in a first fragment",
            stranger().fragment(0, true).bytes(),
            Refuse(UnknownVtep),
        ),
        case(
            "from a stranger, with options",
            stranger().options().bytes(),
            Refuse(UnknownVtep),
        ),
        case(
            "from a stranger, with a priority tag",
            stranger().bytes(),
            Refuse(UnknownVtep),
        )
        .tag(0),
        case(
            "ARP from a stranger",
            outer(&arp(PEER_VTEP_MAC, POD_REMOTE, POD_A))
                .with(|ip| ip.source = STRANGER)
                .bytes(),
            Refuse(UnknownVtep),
        ),
        case(
            "another VNI",
            damaged(&outer(&inner().bytes()), |b| b[48] = 9),
            Refuse(WrongVni),
        ),
        case(
            "another VNI, switched off",
            damaged(&outer(&inner().bytes()), |b| b[48] = 9),
            Refuse(WrongVni),
        )
        .world(|w| w.config().flags = 0),
        case(
            "another peer's pod",
            outer(&foreign().bytes()).bytes(),
            Refuse(ForeignInnerSource),
        ),
        case(
            "this node's own pod",
            outer(&between((POD_B, 80), (POD_A, 40000)).bytes()).bytes(),
            Refuse(ForeignInnerSource),
        ),
        case(
            "nobody's pod",
            outer(&between((POD_NOWHERE, 80), (POD_A, 40000)).bytes()).bytes(),
            Refuse(ForeignInnerSource),
        ),
        case(
            "another peer's pod, in an inner fragment",
            outer(&foreign().fragment(5, false).bytes()).bytes(),
            Refuse(ForeignInnerSource),
        ),
        case(
            "another peer's pod, with inner options",
            outer(&foreign().options().bytes()).bytes(),
            Refuse(ForeignInnerSource),
        ),
        case(
            "another peer's pod, in an outer fragment",
            outer(&foreign().bytes()).fragment(0, true).bytes(),
            Refuse(ForeignInnerSource),
        ),
        case(
            "another peer's pod, with outer options",
            outer(&foreign().bytes()).options().bytes(),
            Refuse(ForeignInnerSource),
        ),
        case(
            "another peer's pod, in a super-packet",
            outer(&foreign().bytes()).bytes(),
            Refuse(ForeignInnerSource),
        )
        .segments(1400),
        case(
            "another peer's pod, while inactive",
            outer(&foreign().bytes()).bytes(),
            Refuse(ForeignInnerSource),
        )
        .world(|w| w.clear_flags(CONFIG_ACTIVE)),
        case(
            "a tag inside",
            outer(&tagged(inner().bytes(), 7)).bytes(),
            Refuse(InnerVlan),
        ),
        case(
            "a priority tag inside",
            outer(&tagged(inner().bytes(), 0)).bytes(),
            Refuse(InnerVlan),
        ),
        case(
            "a fragment that hides the VNI",
            short(0),
            Refuse(HidingFragment),
        ),
        case(
            "a fragment that hides the inner header",
            short(8 + 14),
            Refuse(HidingFragment),
        ),
        case(
            "a fragment that hides the inner source",
            short(8 + 14 + 12),
            Refuse(HidingFragment),
        ),
        case(
            "a fragment that shows just enough",
            short(8 + 14 + 20),
            PassPlain(Fragment),
        ),
    ]
}

/// What leaves by the IP stack.
fn leavings() -> Vec<Case> {
    use Verdict::*;
    let at = |hook, name, frame: &Ipv4Frame, want| Case::new(hook, name, frame.bytes(), want);
    let (to_pod, to_vtep) = (Hook::PodOut, Hook::VtepOut);
    let reply = inner();
    let request = routed(POD_REMOTE);
    let key = flow((POD_A, 40000), (POD_REMOTE, 80));
    let external = between((OUTSIDE, 80), (POD_A, 40000));
    let error = Ipv4Frame::icmp(POD_REMOTE, POD_A, time_exceeded());
    vec![
        at(to_pod, "from a peer's pod to ours", &reply, Remember(key)),
        at(to_vtep, "from our pod to a peer's", &request, Remember(key)),
        at(
            to_pod,
            "from our pod to ours",
            &local(),
            Remember(flow((POD_A, 40000), (POD_B, 80))),
        ),
        at(to_pod, "handed over as plain", &reply, Pass(Passed)).plain(),
        at(
            to_vtep,
            "handed over as plain, to a peer",
            &request,
            Pass(Passed),
        )
        .plain(),
        at(to_pod, "from outside", &external, Pass(Passed)),
        at(
            to_pod,
            "from this node to its pod",
            &between(([10, 244, 1, 1], 80), (POD_A, 1)),
            Pass(Passed),
        ),
        at(
            to_vtep,
            "from this node to a peer's pod",
            &between((VTEP, 80), (POD_REMOTE, 1)),
            Pass(Passed),
        ),
        at(
            to_vtep,
            "through this node, between peers",
            &between((POD_OTHER, 80), (POD_REMOTE, 1)),
            Pass(Passed),
        ),
        at(
            to_pod,
            "a first fragment",
            &reply.clone().fragment(0, true),
            Remember(key),
        ),
        at(
            to_pod,
            "a later fragment",
            &reply.clone().fragment(5, false),
            Pass(Fragment),
        ),
        at(to_pod, "options", &reply.clone().options(), Remember(key)),
        at(to_pod, "an ICMP error", &error, Pass(IcmpError)),
        at(to_pod, "switched off", &reply, Remember(key)).world(|w| w.config().flags = 0),
        at(to_pod, "no configuration", &reply, Pass(Inactive)).world(|w| w.config = None),
        Case::new(to_pod, "ARP", arp(MAC_A, POD_A, POD_B), Pass(NotIp)),
        Case::new(to_pod, "no header", vec![0; 15], Pass(NotIp)),
        Case::new(
            to_pod,
            "no room for ports",
            reply.bytes()[..37].to_vec(),
            Pass(Malformed),
        ),
    ]
}
