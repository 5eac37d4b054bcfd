//! What a pod sends honestly.

use super::*;

/// What a pod sends honestly.
pub fn cases() -> Vec<Case> {
    use Verdict::*;
    let case = |name, frame: Vec<u8>, want| Case::new(Hook::PodIn, name, frame, want);
    let remote = || routed(POD_REMOTE);
    let icmp = |message| {
        Ipv4Frame::icmp(POD_A, POD_REMOTE, message)
            .sent_by(MAC_A)
            .sent_to(BRIDGE_MAC)
    };
    let quoting = |about: Ipv4Frame| {
        unreachable(POD_A, POD_REMOTE, &about)
            .sent_by(MAC_A)
            .sent_to(BRIDGE_MAC)
            .bytes()
    };
    let long = || routed(POD_REMOTE).bytes().len() as u32 - 14;
    vec![
        case("to a pod of this node", local().bytes(), Fast(Redirected)),
        case("to a peer's pod", remote().bytes(), Fast(Encapsulated)),
        case(
            "from a second address of its own",
            Ipv4Frame::tcp((POD_UNLISTED, 40000), (POD_REMOTE, 80), b"request")
                .sent_by(MAC_A)
                .sent_to(BRIDGE_MAC)
                .bytes(),
            Fast(Encapsulated),
        )
        .world(|w| {
            let endpoint = w.endpoints.get_mut(&VETH_A).expect("a known interface");
            endpoint.addresses[ENDPOINT_ADDRESSES - 1] = POD_UNLISTED;
        }),
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
            "switched off, to nobody that the tables list",
            remote().bytes(),
            PassPlain(Inactive),
        )
        .world(|w| {
            w.clear_flags(CONFIG_ACTIVE);
            w.peers.clear();
        }),
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
            "from the address of the container's other interface",
            remote().with(|ip| ip.source = POD_B).bytes(),
            PassPlain(SiblingSource),
        )
        .world(World::join),
        case(
            "ARP for the address of the container's other interface",
            arp(MAC_A, POD_B, POD_UNLISTED),
            Pass(NotIp),
        )
        .world(World::join),
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
            PassPlain(UnknownPod),
        ),
        case(
            "to an unlisted pod here, by the gateway",
            routed(POD_UNLISTED).bytes(),
            PassPlain(UnknownPod),
        ),
        case(
            "to the VXLAN device",
            routed(VTEP_DEVICE).bytes(),
            Pass(NotOverlay),
        ),
        case("to the gateway", routed(GATEWAY).bytes(), Pass(NotOverlay)),
        case(
            "to an unlisted subnet",
            routed(POD_NOWHERE).bytes(),
            PassPlain(UnknownPeer),
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
        .world(|w| w.pod_mut(POD_B).flags = POD_KERNEL_PATH),
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
            "an ICMP error that quotes nothing",
            icmp(time_exceeded()).bytes(),
            PassPlain(IcmpError),
        ),
        case(
            "an ICMP error about plain traffic",
            quoting(between((POD_REMOTE, 40000), (POD_A, 80))),
            Fast(Encapsulated),
        ),
        case(
            "an ICMP error about a flow of the stack",
            quoting(between((POD_REMOTE, 40000), (POD_A, 80))),
            PassPlain(StackOwned),
        )
        .world(owned((POD_A, 80), (POD_REMOTE, 40000))),
        case(
            "an ICMP error about what somebody else sent",
            quoting(between((OUTSIDE, 40000), (POD_A, 80))),
            PassPlain(IcmpError),
        ),
        case(
            "an ICMP error about what went elsewhere",
            quoting(between((POD_REMOTE, 40000), (OUTSIDE, 80))),
            PassPlain(IcmpError),
        ),
        case(
            "an ICMP error about a later fragment",
            quoting(between((POD_REMOTE, 40000), (POD_A, 80)).fragment(5, false)),
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
        .world(move |w| w.pod_mut(POD_B).mtu = long() - 1),
        case(
            "more than 64 KiB to a pod of this node",
            big(&local()),
            Fast(Redirected),
        )
        .segments(MTU - 40),
        case(
            "more than 64 KiB to a peer's pod",
            big(&remote()),
            PassPlain(TooLong),
        )
        .segments(MTU - 40),
        case(
            "no length, and a byte less than 64 KiB",
            without_length(&local(), 14 + 65_535),
            PassPlain(Malformed),
        )
        .segments(MTU - 40),
        case(
            "no length, and 64 KiB",
            without_length(&local(), 14 + 65_536),
            Fast(Redirected),
        )
        .segments(MTU - 40),
        case(
            "as long as a tunnel's length can say",
            filled(remote(), 65_535 - 50),
            Fast(Encapsulated),
        )
        .segments(MTU - 40),
        case(
            "a byte longer than a tunnel's length can say",
            filled(remote(), 65_535 - 49),
            PassPlain(TooLong),
        )
        .segments(MTU - 40),
        case(
            "TCP to the VXLAN port of a node",
            Ipv4Frame::tcp((POD_A, 50000), (PEER_VTEP, PORT), &[0; 16])
                .sent_by(MAC_A)
                .sent_to(BRIDGE_MAC)
                .bytes(),
            Pass(NotOverlay),
        ),
        case(
            "a later fragment to a node that looks like the VXLAN port",
            Ipv4Frame::udp((POD_A, 50000), (PEER_VTEP, PORT), &[0; 16])
                .sent_by(MAC_A)
                .sent_to(BRIDGE_MAC)
                .fragment(5, false)
                .bytes(),
            Pass(NotOverlay),
        ),
        case(
            "more than 64 KiB that no device cuts",
            big(&local()),
            PassPlain(Malformed),
        ),
        case(
            "no length in a short frame",
            big(&local())[..1000].to_vec(),
            PassPlain(Malformed),
        )
        .segments(MTU - 40),
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
            PassPlain(UnknownPeer),
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

/// Bytes with so much payload that the IP packet has `len` bytes.
fn filled(mut frame: Ipv4Frame, len: usize) -> Vec<u8> {
    frame.body.resize(len - 20, 0);
    frame.bytes()
}

/// A peer with half of a /24: everybody is looked up under the longer mask then.
fn halves(world: &mut World) {
    world.config_mut().peer_mask = [255, 255, 255, 128];
    world.peers.insert([10, 244, 4, 128], peer(PEER_VTEP));
}
