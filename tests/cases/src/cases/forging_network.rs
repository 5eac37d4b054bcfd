//! What the network sends in somebody else's name.

use super::*;

/// What the network sends in somebody else's name: refused, whatever else is odd about it.
pub fn cases() -> Vec<Case> {
    use Verdict::*;
    let case = |name, frame: Vec<u8>, want| Case::new(Hook::NetIn, name, frame, want);
    let stranger = || outer(&inner().bytes()).with(|ip| ip.source = STRANGER);
    // A pod of the other peer, sent by the peer.
    let foreign = || between((POD_OTHER, 80), (POD_A, 40000));
    let ipv6 = || ethernet(PEER_VTEP_MAC, VTEP_MAC, EtherType::IPV6.0, &[0x60; 60]);
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
        .world(|w| w.config_mut().flags = 0),
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
        .world(|w| w.config_mut().flags = 0),
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
            "this node's own pod, before every lease is known",
            outer(&between((POD_B, 80), (POD_A, 40000)).bytes()).bytes(),
            Refuse(ForeignInnerSource),
        )
        .world(|w| w.clear_flags(CONFIG_PEERS_COMPLETE)),
        case(
            "this node's own pod, from a node that found no room",
            outer(&between((POD_B, 80), (POD_A, 40000)).bytes())
                .with(|ip| ip.source = STRANGER)
                .bytes(),
            Refuse(ForeignInnerSource),
        )
        .world(|w| w.set_flags(CONFIG_VTEPS_INCOMPLETE)),
        case(
            "this node's own pod, long after the agent has gone",
            outer(&between((POD_B, 80), (POD_A, 40000)).bytes()).bytes(),
            Refuse(ForeignInnerSource),
        )
        .world(|w| w.leases_are_stale = true),
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
            "ARP inside",
            outer(&arp(PEER_VTEP_MAC, POD_REMOTE, POD_A)).bytes(),
            Refuse(InnerProtocol),
        ),
        case("IPv6 inside", outer(&ipv6()).bytes(), Refuse(InnerProtocol)),
        case(
            "IPv6 inside, in a first fragment",
            outer(&ipv6()).fragment(0, true).bytes(),
            Refuse(InnerProtocol),
        ),
        case(
            "IPv6 inside, from a node that found no room",
            outer(&ipv6()).with(|ip| ip.source = STRANGER).bytes(),
            Refuse(InnerProtocol),
        )
        .world(|w| w.set_flags(CONFIG_VTEPS_INCOMPLETE)),
        case(
            "IPv6 inside, long after the agent has gone",
            outer(&ipv6()).with(|ip| ip.source = STRANGER).bytes(),
            Refuse(InnerProtocol),
        )
        .world(|w| w.leases_are_stale = true),
        case(
            "IPv6 inside, switched off",
            outer(&ipv6()).bytes(),
            Refuse(InnerProtocol),
        )
        .world(|w| w.config_mut().flags = 0),
        case(
            "LLDP inside",
            outer(&ethernet(PEER_VTEP_MAC, VTEP_MAC, 0x88cc, &[0; 46])).bytes(),
            Refuse(InnerProtocol),
        ),
        case(
            "a length in the place of the Ethernet type inside",
            outer(&ethernet(PEER_VTEP_MAC, VTEP_MAC, 46, &[0; 46])).bytes(),
            Refuse(InnerProtocol),
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
