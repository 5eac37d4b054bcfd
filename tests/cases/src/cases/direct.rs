//! What travels without encapsulation, between pods of nodes on one link.

use overlay_common::schema::{CONFIG_DIRECT, PEER_NEXT_HOP, PeerEntry};

use super::*;

/// What a pod sends to a peer on the link, and what the link brings.
pub fn cases() -> Vec<Case> {
    [sent(), received(), leaving()].concat()
}

/// At a node with a peer on the link.
fn at(hook: Hook, name: &'static str, frame: Vec<u8>, want: Outcome) -> Case {
    Case::new(hook, name, frame, want).world(World::go_direct)
}

/// A pod's packet.
fn sent() -> Vec<Case> {
    use Verdict::*;
    let case = |name, frame: Vec<u8>, want| at(Hook::PodIn, name, frame, want);
    let remote = || routed(POD_REMOTE);
    let long = |len: usize| {
        Ipv4Frame::udp((POD_A, 40000), (POD_REMOTE, 80), &vec![0; len - 28])
            .sent_by(MAC_A)
            .sent_to(BRIDGE_MAC)
    };
    vec![
        case("to a peer on the link", remote().bytes(), Fast(Routed)),
        case(
            "to a peer behind VXLAN",
            routed(POD_OTHER).bytes(),
            Fast(Encapsulated),
        ),
        case(
            "as long as the link takes",
            long(1500).bytes(),
            Fast(Routed),
        ),
        case(
            "longer than the link takes",
            long(1501).bytes(),
            PassPlain(TooLong),
        ),
        case(
            "to the link, at the end of its time",
            remote().with(|ip| ip.time_to_live = 1).bytes(),
            PassPlain(TtlExpired),
        ),
        case(
            "to the link, not by the gateway",
            remote().sent_to(MAC_B).bytes(),
            PassPlain(ForeignMac),
        ),
        case(
            "to the link, from somebody else",
            damaged(&remote(), |b| b[29] = 3),
            Refuse(SpoofedSource),
        ),
    ]
}

/// A packet of the peer's pod, as the link brings it.
fn arrived(source: [u8; 4], destination: [u8; 4]) -> Ipv4Frame {
    between((source, 80), (destination, 40000))
        .sent_by(PEER_NIC_MAC)
        .sent_to(NIC_MAC)
}

fn received() -> Vec<Case> {
    use Verdict::*;
    let case = |name, frame: Vec<u8>, want| at(Hook::NetIn, name, frame, want);
    let packet = || arrived(POD_REMOTE, POD_A);
    let padded = |frame: &Ipv4Frame| damaged(frame, |bytes| bytes.extend([0; 6]));
    vec![
        case("from the link", packet().bytes(), Fast(Redirected)),
        case(
            "from the link, switched off",
            packet().bytes(),
            PassPlain(Inactive),
        )
        .world(|w| w.clear_flags(CONFIG_ACTIVE)),
        case(
            "from the link, another machine's",
            packet().sent_to(PEER_NIC_MAC).bytes(),
            Pass(NotForUs),
        ),
        case(
            "from the link, another network's",
            packet().bytes(),
            Pass(NotForUs),
        )
        .tag(7),
        case(
            "from the link, with a priority",
            packet().bytes(),
            PassPlain(VlanTag),
        )
        .tag(0),
        case(
            "from another MAC address than the peer's",
            packet().sent_by(VTEP_MAC).bytes(),
            PassPlain(UnprovenSource),
        ),
        case(
            "from a peer whose MAC address is not known",
            packet().bytes(),
            PassPlain(UnprovenSource),
        )
        .world(|w| peer_of(w).flags &= !PEER_NEXT_HOP),
        case(
            "without encapsulation from a peer behind VXLAN",
            arrived(POD_OTHER, POD_A).bytes(),
            PassPlain(UnprovenSource),
        ),
        case(
            "from the link, of no lease",
            arrived(POD_NOWHERE, POD_A).bytes(),
            PassPlain(UnprovenSource),
        ),
        case(
            "from the link, as a pod of this node",
            arrived(POD_B, POD_A).bytes(),
            Refuse(ForeignInnerSource),
        ),
        case(
            "from the link, as a pod of this node, in fragments",
            arrived(POD_B, POD_A).fragment(4, false).bytes(),
            Refuse(ForeignInnerSource),
        ),
        case(
            "from the link, as a pod of this node, switched off",
            arrived(POD_B, POD_A).bytes(),
            Refuse(ForeignInnerSource),
        )
        .world(|w| w.clear_flags(CONFIG_ACTIVE)),
        case(
            "from a node itself",
            arrived(PEER_VTEP, POD_A).bytes(),
            Pass(NotVxlan),
        ),
        case(
            "from the link, for a pod that is not listed",
            arrived(POD_REMOTE, POD_UNLISTED).bytes(),
            PassPlain(UnknownPod),
        ),
        case(
            "from the link, for this node",
            arrived(POD_REMOTE, GATEWAY).bytes(),
            Pass(NotOverlay),
        ),
        case(
            "from the link, for a pod with a program of its own",
            packet().bytes(),
            PassPlain(PodKernelPath),
        )
        .world(|w| w.pod_mut(POD_A).flags = POD_KERNEL_PATH),
        case(
            "from the link, a fragment",
            packet().fragment(0, true).bytes(),
            PassPlain(Fragment),
        ),
        case(
            "from the link, with options",
            packet().options().bytes(),
            PassPlain(Options),
        ),
        case(
            "from the link, with padding",
            padded(&packet()),
            PassPlain(Malformed),
        ),
        case(
            "from the link, at the end of its time",
            packet().with(|ip| ip.time_to_live = 1).bytes(),
            PassPlain(TtlExpired),
        ),
        case(
            "from the link, longer than the pod's device takes",
            packet().bytes(),
            PassPlain(TooLong),
        )
        .world(|w| w.pod_mut(POD_A).mtu = 40),
        case(
            "from the link, of a flow that the stack owns",
            packet().bytes(),
            PassPlain(StackOwned),
        )
        .world(owned((POD_REMOTE, 80), (POD_A, 40000))),
        case(
            "without encapsulation, where all peers are behind VXLAN",
            packet().bytes(),
            Pass(NotVxlan),
        )
        .world(|w| w.clear_flags(CONFIG_DIRECT)),
        case(
            "in VXLAN from a peer on the link",
            outer(&inner().bytes()).bytes(),
            Fast(Decapsulated),
        ),
    ]
}

/// The peer that is on the link.
fn peer_of(world: &mut World) -> &mut PeerEntry<V4> {
    world.peers.get_mut(&[10, 244, 2, 0]).expect("a peer")
}

/// What leaves by the NIC.
fn leaving() -> Vec<Case> {
    use Verdict::*;
    let case = |name, frame: &Ipv4Frame, want| at(Hook::VtepOut, name, frame.bytes(), want);
    let remote = || routed(POD_REMOTE);
    vec![
        case("sent on by a program", &remote(), Pass(Passed)).handed_over_as(&remote()),
        case(
            "translated, to a peer on the link",
            &remote(),
            Remember(flow((POD_A, 40000), (POD_REMOTE, 80))),
        ),
        case(
            "a pod's, out of the overlay",
            &routed(OUTSIDE),
            Pass(Passed),
        ),
        case("a node's own", &arrived(VTEP, PEER_VTEP), Pass(Passed)),
    ]
}
