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
    let from_port = |port| Ipv4Frame::tcp((POD_A, port), (POD_REMOTE, 80), b"request");
    let forwarded = |frame: &Ipv4Frame| frame.clone().with(|ip| ip.time_to_live -= 1);
    let ping = |id| {
        let echo = Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: 1 });
        Ipv4Frame::icmp(POD_A, POD_REMOTE, echo)
    };
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
        at(to_pod, "as it was handed over", &reply, Pass(Passed)).handed_over_as(&reply),
        at(
            to_vtep,
            "as it was handed over, to a peer",
            &request,
            Pass(Passed),
        )
        .handed_over_as(&request),
        at(to_vtep, "one hop on", &forwarded(&request), Pass(Passed)).handed_over_as(&request),
        at(
            to_vtep,
            "from another port than it was handed over",
            &request,
            Remember(key),
        )
        .handed_over_as(&from_port(40001)),
        at(
            to_vtep,
            "to another port than it was handed over",
            &request,
            Remember(key),
        )
        .handed_over_as(&Ipv4Frame::tcp(
            (POD_A, 40000),
            (POD_REMOTE, 81),
            b"request",
        )),
        at(
            to_vtep,
            "to another address than it was handed over",
            &request,
            Remember(key),
        )
        .handed_over_as(&routed(POD_NOWHERE)),
        at(
            to_pod,
            "from another address than it was handed over",
            &reply,
            Remember(key),
        )
        .handed_over_as(&between((POD_OTHER, 80), (POD_A, 40000))),
        at(
            to_vtep,
            "a datagram of which the first part was handed over",
            &request,
            Pass(Passed),
        )
        .handed_over_as(&request.clone().fragment(0, true)),
        at(
            to_vtep,
            "a first part of what was handed over whole",
            &request.clone().fragment(0, true),
            Pass(Passed),
        )
        .handed_over_as(&request),
        at(
            to_vtep,
            "a later part of what was handed over whole",
            &request.clone().fragment(5, false),
            Pass(Passed),
        )
        .handed_over_as(&request),
        at(
            to_vtep,
            "a later part that was handed over",
            &request.clone().fragment(5, false),
            Pass(Passed),
        )
        .handed_over_as(&request.clone().fragment(5, false)),
        at(
            to_pod,
            "an ICMP error, as it was handed over",
            &error,
            Pass(Passed),
        )
        .handed_over_as(&error),
        at(
            to_vtep,
            "a ping with another identifier than it was handed over",
            &ping(8),
            Remember(FlowKey::new((POD_A, 8), (POD_REMOTE, 8), 1)),
        )
        .handed_over_as(&ping(7)),
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
        at(to_pod, "switched off", &reply, Remember(key)).world(|w| w.config_mut().flags = 0),
        at(to_pod, "no configuration", &reply, Pass(Inactive)).world(|w| w.config = None),
        at(to_pod, "no configuration, marked", &reply, Pass(Inactive))
            .world(|w| w.config = None)
            .handed_over_as(&reply),
        Case::new(to_pod, "ARP", arp(MAC_A, POD_A, POD_B), Pass(NotIp)),
        Case::new(
            to_pod,
            "another type in front of what looks like IPv4",
            damaged(&reply, |b| b[12..14].copy_from_slice(&[0x86, 0xdd])),
            Pass(NotIp),
        ),
        Case::new(to_pod, "no header", vec![0; 15], Pass(NotIp)),
        Case::new(
            to_pod,
            "no room for ports",
            reply.bytes()[..37].to_vec(),
            Pass(Malformed),
        ),
    ]
}
