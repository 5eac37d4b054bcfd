//! What the IP stack sends by the VXLAN device, encapsulated there.

use overlay_common::schema::CONFIG_ENCAPSULATE_FOR_STACK;
use overlay_common::visit::Outcome::Send;

use super::*;

/// What the IP stack sends by the VXLAN device, encapsulated there.
pub fn cases() -> Vec<Case> {
    use Verdict::*;
    let at = |name, frame: &Ipv4Frame, want| {
        let case = Case::new(Hook::VtepOut, name, frame.bytes(), want);
        case.world(|w| w.set_flags(CONFIG_ENCAPSULATE_FOR_STACK))
    };
    let by_device = |frame: Ipv4Frame| frame.sent_by(VTEP_MAC).sent_to(PEER_VTEP_MAC);
    let own = by_device(between((VTEP_DEVICE, 40000), (POD_REMOTE, 80)));
    let translated = by_device(routed(POD_REMOTE));
    let key = flow((POD_A, 40000), (POD_REMOTE, 80));
    let by_nic = own.clone().sent_by(NIC_MAC).sent_to(PEER_NIC_MAC);
    let congested = own
        .clone()
        .with(|ip| ip.ecn = IpEcn::try_new(3).expect("two bits"));
    let wrong = damaged(&own, |b| b[24] ^= 1);
    let ask = |from| by_device(Ipv4Frame::icmp(from, POD_REMOTE, echo()));
    vec![
        at(
            "this node's question for the kernel path",
            &ask(VTEP_DEVICE),
            Pass(Passed),
        ),
        at("a ping from elsewhere", &ask(VTEP), Send(None)),
        at("this node's own, to a peer's pod", &own, Send(None)),
        at(
            "from a node of the underlay",
            &by_device(between((VTEP, 80), (POD_REMOTE, 1))),
            Send(None),
        ),
        at(
            "from beyond the overlay",
            &by_device(between((OUTSIDE, 80), (POD_REMOTE, 1))),
            Send(None),
        ),
        at("our pod's, translated", &translated, Send(Some(key))),
        at("our pod's, as it was handed over", &translated, Send(None)).handed_over_as(&translated),
        at(
            "a time to live that ends there",
            &own.clone().with(|ip| ip.time_to_live = 1),
            Send(None),
        ),
        at("congestion experienced", &congested, Send(None)),
        at("segments", &own, Send(None)).segments(20),
        at(
            "by the NIC, to a peer behind a tunnel",
            &by_nic,
            Pass(Passed),
        ),
        at(
            "for another node's device",
            &own.clone().sent_to(MAC_B),
            Pass(Passed),
        ),
        at(
            "from another device",
            &own.clone().sent_by(BRIDGE_MAC),
            Pass(Passed),
        ),
        at("to a peer on the link", &own, Pass(Passed)).world(Change::go_direct),
        at(
            "to nobody's subnet",
            &by_device(between((VTEP, 80), (POD_NOWHERE, 1))),
            Pass(Passed),
        ),
        at("a fragment", &own.clone().fragment(0, true), Pass(Passed)),
        at("options", &own.clone().options(), Pass(Passed)),
        Case::new(Hook::VtepOut, "a wrong checksum", wrong, Pass(Passed))
            .world(|w| w.set_flags(CONFIG_ENCAPSULATE_FOR_STACK)),
        at("longer than the path", &own, Pass(Passed)).world(|w| {
            let peer = w.peers.get_mut(&[10, 244, 2, 0]).expect("a peer");
            peer.mtu = 40;
        }),
        at("tagged", &own, Pass(Passed)).tag(1),
        at("switched off", &own, Pass(Passed)).world(|w| w.clear_flags(CONFIG_ACTIVE)),
        at("while somebody captures", &own, Pass(Passed))
            .world(|w| w.clear_flags(CONFIG_ENCAPSULATE_FOR_STACK)),
        Case::new(Hook::PodOut, "to a pod", own.bytes(), Pass(Passed))
            .world(|w| w.set_flags(CONFIG_ENCAPSULATE_FOR_STACK)),
    ]
}
