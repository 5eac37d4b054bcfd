//! What the network sends honestly.

use super::*;

/// What the network sends honestly.
pub fn cases() -> Vec<Case> {
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
    let error = || {
        let about = between((POD_A, 40000), (POD_REMOTE, 80));
        unreachable(POD_REMOTE, POD_A, &about)
            .sent_by(PEER_VTEP_MAC)
            .sent_to(VTEP_MAC)
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
            "a node that found no room",
            packet().with(|ip| ip.source = STRANGER).bytes(),
            Pass(PeersIncomplete),
        )
        .world(|w| w.set_flags(CONFIG_VTEPS_INCOMPLETE)),
        case(
            "for an unlisted pod",
            with_inner(between((POD_REMOTE, 80), (POD_UNLISTED, 40000))).bytes(),
            PassPlain(UnknownPod),
        ),
        case(
            "for an unlisted pod, with outer options",
            with_inner(between((POD_REMOTE, 80), (POD_UNLISTED, 40000)))
                .options()
                .bytes(),
            PassPlain(UnknownPod),
        ),
        case(
            "for this node's bridge",
            with_inner(between((POD_REMOTE, 80), (GATEWAY, 40000))).bytes(),
            Pass(NotOverlay),
        ),
        case(
            "for this node's VXLAN device",
            with_inner(between((POD_REMOTE, 80), (VTEP_DEVICE, 40000))).bytes(),
            Pass(NotOverlay),
        ),
        case(
            "for another node",
            with_inner(between((POD_REMOTE, 80), (POD_OTHER, 40000))).bytes(),
            Pass(NotOverlay),
        ),
        case(
            "an unknown lease, long after the agent has gone",
            with_inner(between((POD_NOWHERE, 80), (POD_A, 40000))).bytes(),
            Pass(StaleLeases),
        )
        .world(|w| w.leases_are_stale = true),
        case(
            "another peer's pod, long after the agent has gone",
            with_inner(between((POD_OTHER, 80), (POD_A, 40000))).bytes(),
            Pass(StaleLeases),
        )
        .world(|w| w.leases_are_stale = true),
        case(
            "an unknown node, long after the agent has gone",
            packet().with(|ip| ip.source = STRANGER).bytes(),
            Pass(StaleLeases),
        )
        .world(|w| w.leases_are_stale = true),
        case(
            "a known node, long after the agent has gone",
            packet().bytes(),
            Fast(Decapsulated),
        )
        .world(|w| w.leases_are_stale = true),
        case("a priority tag", packet().bytes(), PassPlain(VlanTag)).tag(0xe000),
        case(
            "for a pod on the kernel path",
            packet().bytes(),
            PassPlain(PodKernelPath),
        )
        .world(|w| w.pod_mut(POD_A).flags = POD_KERNEL_PATH),
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
            "an outer checksum",
            damaged(&packet(), |b| b[41] = 1),
            Fast(Decapsulated),
        ),
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
            "a super-packet that is the kernel's",
            packet().bytes(),
            PassPlain(Aggregate),
        )
        .world(|w| w.set_flags(CONFIG_AGGREGATES_TO_KERNEL))
        .segments(MTU - 40),
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
        .world(|w| w.pod_mut(POD_A).mtu = 40),
        case(
            "an ICMP error that quotes nothing",
            with_inner(
                Ipv4Frame::icmp(POD_REMOTE, POD_A, time_exceeded())
                    .sent_by(PEER_VTEP_MAC)
                    .sent_to(VTEP_MAC),
            )
            .bytes(),
            PassPlain(IcmpError),
        ),
        case(
            "an ICMP error about plain traffic",
            with_inner(error()).bytes(),
            Fast(Decapsulated),
        ),
        case(
            "an ICMP error about a flow of the stack",
            with_inner(error()).bytes(),
            PassPlain(StackOwned),
        )
        .world(owned((POD_A, 40000), (POD_REMOTE, 80))),
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
