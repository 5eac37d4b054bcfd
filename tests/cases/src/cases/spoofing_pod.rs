//! What a pod sends in somebody else's name.

use super::*;

/// What a pod sends in somebody else's name: refused, whatever else is odd about it.
pub fn cases() -> Vec<Case> {
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
        .world(|w| w.config_mut().flags = 0),
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
            arp(MAC_A, GATEWAY, POD_A),
            Refuse(SpoofedArp),
        ),
        case(
            "ARP for another's address while switched off",
            arp(MAC_A, POD_B, POD_A),
            Refuse(SpoofedArp),
        )
        .world(|w| w.config_mut().flags = 0),
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
            "VXLAN to this node's bridge",
            to_node(GATEWAY).bytes(),
            Refuse(PodVxlan),
        ),
        case(
            "VXLAN to this node's VXLAN device",
            to_node(VTEP_DEVICE).bytes(),
            Refuse(PodVxlan),
        ),
        case(
            "VXLAN from the address of the container's other interface",
            to_node(VTEP).with(|ip| ip.source = POD_B).bytes(),
            Refuse(PodVxlan),
        )
        .world(World::join),
        case(
            "another's address, though no owner is known",
            routed(POD_REMOTE).with(|ip| ip.source = POD_B).bytes(),
            Refuse(SpoofedSource),
        )
        .world(|world| world.join_under(0)),
        case(
            "ARP for another's address, though no owner is known",
            arp(MAC_A, POD_B, POD_A),
            Refuse(SpoofedArp),
        )
        .world(|world| world.join_under(0)),
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
        .world(|w| w.config_mut().flags = 0),
        case(
            "VXLAN from a source outside the overlay",
            to_node(VTEP).with(|ip| ip.source = OUTSIDE).bytes(),
            Refuse(PodVxlan),
        ),
    ]
}
