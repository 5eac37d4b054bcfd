//! What the network sends to the IP stack, handed in at the VXLAN device.

use super::*;

/// What the network sends to the IP stack, handed in at the VXLAN device.
pub fn cases() -> Vec<Case> {
    use Verdict::*;
    let visit = |name, packet: &Ipv4Frame, want| {
        Case::new(Hook::NetIn, name, packet.bytes(), want)
            .world(|w| w.config_mut().vtep_ifindex = VTEP_INTERFACE)
    };
    let tunnelled = |inner: Ipv4Frame| outer(&inner.bytes());
    let to = |address| tunnelled(between((POD_REMOTE, 80), (address, 40000)));
    let to_pod = || tunnelled(inner());
    let ping = |address| {
        let echo = Ipv4Frame::icmp(POD_REMOTE, address, echo());
        tunnelled(echo.sent_by(PEER_VTEP_MAC).sent_to(VTEP_MAC))
    };
    let congested = |ip: &mut etherparse::Ipv4Header| {
        ip.ecn = IpEcn::try_new(3).expect("two bits");
    };
    let able = |ip: &mut etherparse::Ipv4Header| {
        ip.ecn = IpEcn::try_new(2).expect("two bits");
    };
    let of_the_stack = owned((POD_A, 40000), (POD_REMOTE, 80));
    vec![
        visit("for a pod", &to_pod(), Fast(Decapsulated)),
        visit("for the bridge", &to(GATEWAY), HandIn(NotOverlay)),
        visit("for the device", &to(VTEP_DEVICE), HandIn(NotOverlay)),
        visit("for the node", &to(VTEP), HandIn(NotOverlay)),
        visit("for beyond the overlay", &to(OUTSIDE), HandIn(NotOverlay)),
        visit("for an unlisted pod", &to(POD_UNLISTED), HandIn(UnknownPod)),
        visit(
            "a ping of an unlisted pod",
            &ping(POD_UNLISTED),
            HandIn(UnknownPod),
        ),
        visit(
            "a peer's question for the kernel path",
            &ping(VTEP_DEVICE),
            Pass(NotOverlay),
        ),
        visit("a flow of the stack", &to_pod(), HandIn(StackOwned)).world(of_the_stack),
        visit(
            "the last hop",
            &tunnelled(inner().with(|ip| ip.time_to_live = 1)),
            HandIn(TtlExpired),
        ),
        visit("longer than the pod takes", &to_pod(), HandIn(TooLong))
            .world(|w| w.pod_mut(POD_A).mtu = 40),
        visit(
            "for a pod on the kernel path",
            &to_pod(),
            HandIn(PodKernelPath),
        )
        .world(|w| w.pod_mut(POD_A).flags = POD_KERNEL_PATH),
        visit("outer options", &to(GATEWAY).options(), Pass(NotOverlay)),
        visit(
            "a fragment",
            &to(GATEWAY).fragment(0, true),
            Pass(NotOverlay),
        ),
        visit(
            "an inner fragment",
            &tunnelled(between((POD_REMOTE, 80), (GATEWAY, 40000)).fragment(0, true)),
            Pass(NotOverlay),
        ),
        visit(
            "for another device",
            &tunnelled(inner().sent_to(MAC_A)),
            PassPlain(ForeignMac),
        ),
        visit("a tag", &to(GATEWAY), Pass(NotOverlay)).tag(0xe000),
        visit("segments", &to(GATEWAY), Pass(NotOverlay)).segments(20),
        visit(
            "congestion that the device notes",
            &tunnelled(between((POD_REMOTE, 80), (GATEWAY, 40000)).with(able)).with(congested),
            Pass(NotOverlay),
        ),
        visit("switched off", &to(GATEWAY), PassPlain(Inactive))
            .world(|w| w.clear_flags(CONFIG_ACTIVE)),
        visit("without a device", &to(GATEWAY), Pass(NotOverlay))
            .world(|w| w.config_mut().vtep_ifindex = 0),
    ]
}
