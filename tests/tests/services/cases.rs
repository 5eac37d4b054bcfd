//! All ways to reach a pod through a translation.

use std::net::{IpAddr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::conversation::{Conversation, Transport};
use overlay_tests::{Namespace, Pod, lab};

use super::cluster::{
    ANYWHERE, BOTH, Cluster, HOST_PORT, INSIDE_LOCAL, INSIDE_REMOTE, LOCAL, LOCAL_ONLY,
    MASQUERADED, REMOTE,
};

/// Both sides send, the server last and first.
pub fn both_speak(conversation: &Conversation) -> Result<()> {
    conversation.server_speaks()?;
    conversation.client_speaks()?;
    conversation.server_speaks()
}

/// The caller, the address called, the answering pod, and the address that the answering pod must
/// see.
pub struct Case {
    pub what: &'static str,
    pub from: Namespace,
    pub target: SocketAddrV4,
    pub service: usize,
    pub seen: Option<IpAddr>,
}

/// All cases, and plain traffic in addition.
pub fn cases(cluster: &Cluster) -> Result<Vec<Case>> {
    let lab = &cluster.lab;
    let (near_client, near_backend) = (lab.pod(1, 1), lab.pod(1, 2));
    let far_client = lab.pod(2, 2);
    let outside = lab.namespace("outside")?;
    let own = |pod: &Pod| Some(IpAddr::V4(pod.address()));
    let gateway = lab.node(1).subnet()?.hosts().next().context("a gateway")?;
    let service = |service: usize| cluster.services[service].address;
    let node = |number: usize, port| SocketAddrV4::new(lab.node(number).underlay_address(), port);
    let case = |what, from: Namespace, target, service, seen| Case {
        what,
        from,
        target,
        service,
        seen,
    };
    let pod = |pod: &Pod| pod.namespace();
    let host = |number: usize| lab.node(number).namespace();
    let direct = |service: usize| cluster.services[service].backends[0];
    Ok(vec![
        case(
            "plain, same node",
            pod(&near_client),
            direct(LOCAL),
            LOCAL,
            own(&near_client),
        ),
        case(
            "plain, another node",
            pod(&near_client),
            direct(REMOTE),
            REMOTE,
            own(&near_client),
        ),
        case(
            "ClusterIP, backend on the same node",
            pod(&near_client),
            service(LOCAL),
            LOCAL,
            own(&near_client),
        ),
        case(
            "ClusterIP, backend on another node",
            pod(&near_client),
            service(REMOTE),
            REMOTE,
            own(&near_client),
        ),
        case(
            "an address inside the network, backend on the same node",
            pod(&near_client),
            service(INSIDE_LOCAL),
            INSIDE_LOCAL,
            own(&near_client),
        ),
        case(
            "an address inside the network, backend on another node",
            pod(&near_client),
            service(INSIDE_REMOTE),
            INSIDE_REMOTE,
            own(&near_client),
        ),
        case(
            "ClusterIP, masqueraded",
            pod(&near_client),
            service(MASQUERADED),
            MASQUERADED,
            None,
        ),
        case(
            "ClusterIP, masqueraded, backend on the same node",
            pod(&far_client),
            service(MASQUERADED),
            MASQUERADED,
            None,
        ),
        case(
            "ClusterIP, either backend",
            pod(&near_client),
            service(BOTH),
            BOTH,
            own(&near_client),
        ),
        case(
            "ClusterIP, the client itself",
            pod(&near_backend),
            service(LOCAL),
            LOCAL,
            Some(gateway.into()),
        ),
        case(
            "ClusterIP from a node, backend on the same node",
            host(1),
            service(LOCAL),
            LOCAL,
            None,
        ),
        case(
            "ClusterIP from a node, backend on another node",
            host(1),
            service(REMOTE),
            REMOTE,
            None,
        ),
        case(
            "node port from outside, any node",
            outside.clone(),
            node(1, 30001),
            ANYWHERE,
            None,
        ),
        case(
            "node port from a pod, any node",
            pod(&near_client),
            node(1, 30001),
            ANYWHERE,
            None,
        ),
        case(
            "node port from a pod, another node",
            pod(&near_client),
            node(2, 30001),
            ANYWHERE,
            None,
        ),
        case(
            "node port from outside, that node's pods",
            outside.clone(),
            node(1, 30002),
            LOCAL_ONLY,
            Some(lab::OUTSIDE_GATEWAY.into()),
        ),
        case(
            "node port from a pod, that node's pods",
            pod(&near_client),
            node(1, 30002),
            LOCAL_ONLY,
            own(&near_client),
        ),
        case(
            "host port from outside",
            outside,
            node(1, HOST_PORT),
            LOCAL,
            Some(lab::OUTSIDE_GATEWAY.into()),
        ),
        case(
            "host port from a pod of another node",
            pod(&far_client),
            node(1, HOST_PORT),
            LOCAL,
            Some(lab.node(2).underlay_address().into()),
        ),
        case(
            "host port from a pod of the same node",
            pod(&near_client),
            node(1, HOST_PORT),
            LOCAL,
            Some(gateway.into()),
        ),
        case(
            "host port from the node itself",
            host(1),
            node(1, HOST_PORT),
            LOCAL,
            None,
        ),
        case(
            "host port at the gateway, from a pod of another node",
            pod(&far_client),
            SocketAddrV4::new(gateway, HOST_PORT),
            LOCAL,
            own(&far_client),
        ),
        case(
            "host port at the gateway, from a pod of the same node",
            pod(&near_client),
            SocketAddrV4::new(gateway, HOST_PORT),
            LOCAL,
            Some(gateway.into()),
        ),
    ])
}

/// Runs every case with both transports; returns the failures.
pub fn failures(cluster: &Cluster) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for case in cases(cluster)? {
        for transport in Transport::ALL {
            let servers = cluster.servers(case.service, transport);
            let held = Conversation::open(&case.from, transport, case.target, &servers).and_then(
                |conversation| {
                    both_speak(&conversation)?;
                    let seen = conversation.seen();
                    let right = case.seen.is_none_or(|expected| seen == expected);
                    ensure!(right, "the pod sees {seen} instead of {:?}", case.seen);
                    Ok(())
                },
            );
            if let Err(error) = held {
                failures.push(format!("{}, {transport}: {error:#}", case.what));
            }
        }
    }
    Ok(failures)
}
