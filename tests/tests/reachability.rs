//! All pods and nodes reach each other, the receiver sees the sender's own address, and plain pod
//! traffic takes the fast path.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::fast_path::{left_by_request, packets};
use overlay_tests::packet::RawSocket;
use overlay_tests::reach;
use overlay_tests::status::{Counts, status, wait_accelerated};
use overlay_tests::{Lab, Options, Pod, StoreKind};

/// Slow causes that the matrix provokes: it sends datagrams of up to 60 kB.
const PROVOKED: &[&str] = &["fragment"];

fn lab(name: &str, store: StoreKind, fast_path: &str) -> Result<Lab> {
    Lab::up(Options {
        store,
        fast_path: fast_path.to_owned(),
        ..Options::for_test(name)
    })
}

/// Sends between all pods and nodes, and checks that plain traffic took the fast path on every
/// node, and that all other packets have a known cause.
fn reaches_all_by_the_fast_path(lab: &Lab) -> Result<()> {
    wait_accelerated(lab)?;
    // Earlier packets, of agents that check their peers, arrived before the fast path knew all
    // nodes.
    let nodes = lab.nodes().into_iter();
    let before = nodes.map(|node| Ok((Counts::of(&node)?, node)));
    let before: Vec<_> = before.collect::<Result<_>>()?;
    reach::require_all(lab)?;
    for (before, node) in before {
        let counts = &Counts::of(&node)? - &before;
        let name = node.name();
        ensure!(
            counts.redirected > 0,
            "{name} redirected nothing: {counts:?}"
        );
        ensure!(
            counts.encapsulated > 0,
            "{name} encapsulated nothing: {counts:?}"
        );
        ensure!(
            counts.decapsulated > 0,
            "{name} decapsulated nothing: {counts:?}"
        );
        let ratio = counts.hit_ratio_without(&[PROVOKED, left_by_request()].concat());
        ensure!(ratio >= 0.9, "{name}: hit ratio {ratio:.3}: {counts:?}");
        for cause in counts.slow.keys() {
            let explained = [PROVOKED, left_by_request()]
                .concat()
                .contains(&cause.as_str());
            ensure!(
                explained,
                "{name}: unexplained slow cause {cause}: {counts:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn reachability_with_etcd_and_the_fast_path() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 3,
        ..Options::for_test("reach-etcd")
    })?;
    reaches_all_by_the_fast_path(&lab)
}

#[test]
fn reachability_with_a_directory_and_the_fast_path() -> Result<()> {
    let lab = lab("reach-dir", StoreKind::Dir, "auto")?;
    reaches_all_by_the_fast_path(&lab)
}

#[test]
fn reachability_with_etcd_and_the_kernel_path() -> Result<()> {
    let lab = Lab::up(Options {
        fast_path: "off".to_owned(),
        agent_args: vec!["--guard=nftables".to_owned()],
        ..Options::for_test("reach-etcd-off")
    })?;
    reach::require_all(&lab)?;
    nothing_is_loaded(&lab)
}

#[test]
fn reachability_with_a_directory_and_the_kernel_path() -> Result<()> {
    let lab = lab("reach-dir-off", StoreKind::Dir, "off")?;
    reach::require_all(&lab)?;
    programs_only_check(&lab)
}

/// Without a fast path, programs judge packets from pods, and carry none.
fn programs_only_check(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let status = status(&node)?;
        let attachments = status["attachments"].as_array();
        let hooks: Option<BTreeSet<_>> =
            attachments.map(|all| all.iter().filter_map(|it| it["hook"].as_str()).collect());
        ensure!(hooks == Some(BTreeSet::from(["pod_in"])), "{status}");
        let counts = Counts::of(&node)?;
        ensure!(
            counts.redirected + counts.encapsulated + counts.decapsulated == 0,
            "{counts:?}"
        );
    }
    Ok(())
}

fn nothing_is_loaded(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let status = status(&node)?;
        ensure!(status["fast_path"]["state"] == "absent", "{status}");
        ensure!(
            status["attachments"].as_array().is_some_and(Vec::is_empty),
            "{status}"
        );
    }
    Ok(())
}

/// Position of the datagram of [`own_address`] in a frame.
const PAYLOAD: usize = 14 + 20 + 8;
/// The mark of such a datagram.
const MAGIC: [u8; 4] = *b"dest";
/// Longest time of the last datagram on the way.
const UNDER_WAY: Duration = Duration::from_secs(10);
/// Longest time until a capture that holds all frames returns the next one.
const QUIET: Duration = Duration::from_millis(20);

/// The address that a datagram of [`send_to_all`] was sent to.
fn own_address(frame: &[u8]) -> Option<Ipv4Addr> {
    const UDP: u8 = 17;
    let payload: &[u8; 8] = frame.get(PAYLOAD..PAYLOAD + 8)?.try_into().ok()?;
    let [m0, m1, m2, m3, a0, a1, a2, a3] = *payload;
    ([m0, m1, m2, m3] == MAGIC && frame[23] == UDP).then(|| Ipv4Addr::new(a0, a1, a2, a3))
}

/// Number of addresses of a subnet that are sent to besides its last, pods' and others. Each unused
/// address takes a place in the neighbour table, which all network namespaces of a machine share,
/// with 1024 places in all (`gc_thresh3`): a full table cuts every other lab off.
const TRIED: u8 = 32;

/// Sends from a pod to addresses of the pods' subnets, and more datagrams to those of pods. A
/// datagram contains its destination.
fn send_to_all(
    sender: &Pod,
    subnets: &[Ipv4Addr],
    pods: &[Ipv4Addr],
    to_each: usize,
) -> Result<()> {
    let send = || -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0").context("open a socket")?;
        let send = |to: Ipv4Addr| {
            let payload = [MAGIC, to.octets()].concat();
            // The socket may get an error for an unused address.
            let _ = socket.send_to(&payload, (to, 9));
        };
        for _ in 0..to_each {
            pods.iter().copied().for_each(send);
        }
        for subnet in subnets {
            let [a, b, c, _] = subnet.octets();
            let hosts = (0..TRIED).chain([u8::MAX]);
            let hosts = hosts.map(|host| Ipv4Addr::new(a, b, c, host));
            hosts.filter(|it| !pods.contains(it)).for_each(send);
        }
        Ok(())
    };
    sender.namespace().inside(send)?
}

/// A redirect names an interface, which no comparison of verdicts or bytes shows; this test shows
/// which pod gets the packet.
#[test]
fn every_packet_arrives_at_its_own_pod_and_at_no_other() -> Result<()> {
    const TO_EACH: usize = 20;
    let lab = Lab::up(Options {
        pods: 8,
        ..Options::for_test("reach-own")
    })?;
    wait_accelerated(&lab)?;
    let captures: Vec<_> = lab
        .pods()
        .into_iter()
        .map(|pod| {
            // No pod answers, so that the counters include these packets only.
            pod.run(["iptables", "-w", "-I", "INPUT", "-j", "DROP"])?;
            let capture = RawSocket::open(&pod.namespace(), "eth0")?;
            Ok((pod, capture))
        })
        .collect::<Result<_>>()?;
    let addresses: Vec<_> = lab.pods().iter().map(Pod::address).collect();
    let nodes = lab.nodes();
    let subnets = nodes.iter().map(|node| Ok(node.subnet()?.network()));
    let subnets: Vec<_> = subnets.collect::<Result<_>>()?;
    let senders: Vec<_> = nodes.iter().map(|it| lab.pod(it.number(), 1)).collect();
    for sender in &senders {
        send_to_all(sender, &subnets, &addresses, TO_EACH)?;
    }

    let deadline = Instant::now() + UNDER_WAY;
    let mut failures = Vec::new();
    for (pod, capture) in &captures {
        // A pod's packets to itself stay inside.
        let others = senders.iter().filter(|it| it.name() != pod.name()).count();
        let mut own = 0;
        loop {
            // First all of the pod's own datagrams are read, then any further ones.
            let is_missing = own < others * TO_EACH && Instant::now() < deadline;
            let limit = if is_missing { UNDER_WAY } else { QUIET };
            let Some(frame) = capture.receive(limit)? else {
                break;
            };
            match own_address(&frame.bytes) {
                Some(to) if frame.outgoing || to == pod.address() => {
                    own += usize::from(!frame.outgoing);
                }
                Some(to) => failures.push(format!("{} got a packet for {to}", pod.name())),
                None => {}
            }
        }
        if own != others * TO_EACH {
            failures.push(format!("{} got {own} of {}", pod.name(), others * TO_EACH));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    for node in lab.nodes() {
        let others = lab.pods().len() / lab.nodes().len() - 1;
        for (hook, verdict, pods) in [
            ("pod_in", "redirected", others),
            ("pod_in", "encapsulated", others + 1),
            ("net_in", "decapsulated", others + 1),
        ] {
            let counted = packets(&node, hook, verdict)?;
            let wanted = (pods * TO_EACH) as u64;
            ensure!(
                counted >= wanted,
                "{}: {counted} {verdict}, not {wanted}",
                node.name()
            );
        }
    }
    Ok(())
}
