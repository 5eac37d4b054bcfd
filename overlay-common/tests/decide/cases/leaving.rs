//! What leaves by the IP stack.

use super::*;

/// What leaves by the IP stack.
pub fn cases() -> Vec<Case> {
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
