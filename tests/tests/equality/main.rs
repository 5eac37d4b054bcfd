//! What arrives is the same, byte for byte, whether the fast path carries it or the kernel, and so
//! is what stands on the wire between.
//!
//! One lab; the same packets are sent twice, first with the fast path off, then with it on. Nothing
//! else changes between, so MAC addresses and pod addresses stay. Pods that receive answer nothing,
//! so that the counters of the fast path can be compared with what it should have carried, packet
//! for packet.

mod corpus;
mod injected;
mod made_up;
mod sent;
mod tags;
mod wire;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::fast_path::{packets, wait_serving};
use overlay_tests::packet::RawSocket;
use overlay_tests::{Lab, Namespace, Node, Options, Pod};

use corpus::{Corpus, FIRST_ID, Fast, MAGIC, Probe};
use injected::{Tunnel, nobody};
use sent::Way;
use tags::Tags;
use wire::{ICMP, IPV4, NOBODY, SERVICE_VLAN, UDP, VLAN};

/// How long the last packet, or an answer to it, may be under way.
const UNDER_WAY: Duration = Duration::from_millis(500);
/// How long a capture that holds everything may take to hand out a frame.
const QUIET: Duration = Duration::from_millis(20);

/// Frames as somebody saw them, by probe and by place.
type Seen = BTreeMap<(usize, &'static str), Vec<Vec<u8>>>;

#[test]
fn a_capture_cannot_tell_the_paths_apart() -> Result<()> {
    let lab = Lab::up(Options {
        fast_path: "off".to_owned(),
        ..Options::for_test("equality")
    })?;
    prepare(&lab)?;
    let sent = ways(&lab)?;
    let injected = tunnel(&lab)?;

    let slow = (
        send(&lab, &sent.probes, Sender::Pod)?,
        send(&lab, &injected.probes, Sender::Node)?,
    );
    let slow_hops = hops(&lab)?;

    for node in lab.nodes() {
        switch_on(&node)?;
    }
    let (n1, n2) = (lab.node(1), lab.node(2));
    let fast_from_pod = send(&lab, &sent.probes, Sender::Pod)?;
    let redirected = packets(&n1, "pod_in", "redirected")?;
    let encapsulated = packets(&n1, "pod_in", "encapsulated")?;
    let decapsulated = packets(&n2, "net_in", "decapsulated")?;
    let fast_from_node = send(&lab, &injected.probes, Sender::Node)?;
    let from_node = packets(&n2, "net_in", "decapsulated")? - decapsulated;
    let fast_hops = hops(&lab)?;

    let mut failures = differences(&sent.probes, &slow.0, &fast_from_pod);
    failures.extend(differences(&injected.probes, &slow.1, &fast_from_node));
    for (probes, seen) in [(&sent.probes, &slow.0), (&injected.probes, &slow.1)] {
        let lost = |index: &usize| !seen.keys().any(|(probe, _)| probe == index);
        for (index, probe) in probes.iter().enumerate() {
            if probe.fast == Fast::Whole && lost(&index) {
                failures.push(format!("{} arrived nowhere", probe.name));
            }
        }
    }
    // Otherwise everything could have gone by the kernel and been the same for that reason.
    let count = |probes: &[Probe], wanted: &dyn Fn(&Probe) -> bool| -> u64 {
        probes.iter().filter(|probe| wanted(probe)).count() as u64
    };
    let local = |probe: &Probe| probe.name.starts_with("neighbour");
    for (what, counted, expected) in [
        (
            "redirected",
            redirected,
            count(&sent.probes, &|p| local(p) && p.fast != Fast::No),
        ),
        (
            "encapsulated",
            encapsulated,
            count(&sent.probes, &|p| !local(p) && p.fast != Fast::No),
        ),
        (
            "decapsulated",
            decapsulated,
            count(&sent.probes, &|p| !local(p) && p.fast == Fast::Whole),
        ),
        (
            "injected and decapsulated",
            from_node,
            count(&injected.probes, &|p| p.fast == Fast::Whole),
        ),
    ] {
        // More may be: answers of the pods' own stacks, and what this node's kernel encapsulated.
        if counted < expected {
            failures.push(format!(
                "{counted} packets {what}, at least {expected} should have been"
            ));
        }
    }
    if slow_hops != fast_hops {
        failures.push(format!(
            "traceroute: {slow_hops:?} by the kernel, {fast_hops:?} by the fast path"
        ));
    }
    ensure!(
        failures.is_empty(),
        "{} of {} differ:\n{}",
        failures.len(),
        sent.probes.len() + injected.probes.len(),
        failures.join("\n")
    );
    Ok(())
}

/// Makes the lab able to send and receive the odd, and silent otherwise.
fn prepare(lab: &Lab) -> Result<()> {
    let everyone = lab.nodes().into_iter().map(|node| node.namespace());
    let pods = lab.pods().into_iter().map(|pod| pod.namespace());
    for namespace in everyone.chain(pods) {
        // Every error is worth an ICMP message here; redirects depend on how many there were
        // before.
        for setting in [
            "net.ipv4.icmp_ratelimit=0",
            "net.ipv4.icmp_ratemask=0",
            "net.ipv4.conf.all.send_redirects=0",
        ] {
            namespace.run(["sysctl", "-qw", setting])?;
        }
        // Per namespace since Linux 6.13, global and out of reach before.
        let _ = namespace.exec(["sysctl", "-qw", "net.ipv4.icmp_msgs_per_sec=100000"])?;
        let _ = namespace.exec(["sysctl", "-qw", "net.ipv4.icmp_msgs_burst=100000"])?;
    }
    for pod in [lab.pod(1, 2), lab.pod(2, 1)] {
        pod.run(["iptables", "-w", "-I", "INPUT", "-j", "DROP"])?;
    }
    let node = lab.node(1);
    node.run(["sysctl", "-qw", "net.ipv4.conf.cni0.send_redirects=0"])?;
    // The sender may send more than the overlay takes.
    let sender = lab.pod(1, 1);
    let outside = sender.host_interface()?;
    node.run(["ip", "link", "set", &outside, "mtu", "1500"])?;
    sender.run(["ip", "link", "set", "eth0", "mtu", "1500"])?;
    // The kernel path must not wait for neighbours, nor find out after seconds that there is none.
    let (neighbour, remote) = (lab.pod(1, 2), lab.pod(2, 1));
    let known = |node: &Node, address: Ipv4Addr, mac: [u8; 6]| {
        let line = format!(
            "ip neigh replace {address} lladdr {} dev cni0 nud permanent",
            hex(mac)
        );
        node.run(line.split(' ')).map(drop)
    };
    let own_mac = |pod: &Pod| mac(&pod.namespace(), "eth0");
    known(&node, neighbour.address(), own_mac(&neighbour)?)?;
    known(&lab.node(2), remote.address(), own_mac(&remote)?)?;
    known(&lab.node(2), nobody(remote.address()), NOBODY)
}

fn ways(lab: &Lab) -> Result<Corpus> {
    let (sender, neighbour, remote) = (lab.pod(1, 1), lab.pod(1, 2), lab.pod(2, 1));
    let gateway = mac(&lab.node(1).namespace(), "cni0")?;
    let way = |name, to: &Pod, next_hop, plain, routed| -> Result<Way> {
        Ok(Way {
            name,
            source: sender.address(),
            destination: to.address(),
            mac: mac(&sender.namespace(), "eth0")?,
            next_hop,
            plain,
            routed,
        })
    };
    let mut corpus = Corpus::default();
    corpus.add_way(&way(
        "to another node,",
        &remote,
        gateway,
        Fast::Whole,
        true,
    )?);
    let next_door = mac(&neighbour.namespace(), "eth0")?;
    corpus.add_way(&way(
        "neighbour,",
        &neighbour,
        next_door,
        Fast::Whole,
        false,
    )?);
    corpus.add_way(&way(
        "by the gateway,",
        &neighbour,
        gateway,
        Fast::No,
        true,
    )?);
    Ok(corpus)
}

fn tunnel(lab: &Lab) -> Result<Corpus> {
    let (n1, n2) = (lab.node(1), lab.node(2));
    let tunnel = Tunnel {
        outer_from: (mac(&n1.namespace(), "eth0")?, n1.underlay_address()),
        outer_to: (mac(&n2.namespace(), "eth0")?, n2.underlay_address()),
        vtep_from: mac(&n1.namespace(), "flannel.1")?,
        vtep_to: mac(&n2.namespace(), "flannel.1")?,
        source: lab.pod(1, 1).address(),
        destination: lab.pod(2, 1).address(),
    };
    let mut corpus = Corpus::default();
    tunnel.fill(&mut corpus);
    Ok(corpus)
}

fn switch_on(node: &Node) -> Result<()> {
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--fast-path=auto"])?;
    wait_serving(node)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    /// The first pod of the first node.
    Pod,
    /// The first node, by its underlay device.
    Node,
}

/// Sends every probe and collects what arrives anywhere.
fn send(lab: &Lab, probes: &[Probe], sender: Sender) -> Result<Seen> {
    let from = match sender {
        Sender::Pod => lab.pod(1, 1).namespace(),
        Sender::Node => lab.node(1).namespace(),
    };
    let place = |name, namespace: &Namespace, device| -> Result<_> {
        Ok((name, RawSocket::open(namespace, device)?))
    };
    let places = [
        place("sender", &lab.pod(1, 1).namespace(), "eth0")?,
        place("neighbour", &lab.pod(1, 2).namespace(), "eth0")?,
        place("other node's pod", &lab.pod(2, 1).namespace(), "eth0")?,
        place(
            "other node's second pod",
            &lab.pod(2, 2).namespace(),
            "eth0",
        )?,
    ];
    let wire = RawSocket::open(&lab.node(1).namespace(), "eth0")?;
    let tags = Tags::watch(lab.pod(1, 2))?;
    let socket = RawSocket::open(&from, "eth0")?;
    for probe in probes {
        for frame in &probe.frames {
            socket.send(frame).with_context(|| probe.name.clone())?;
        }
    }
    std::thread::sleep(UNDER_WAY);
    let mut seen = Seen::new();
    for (name, socket) in &places {
        // All of it: the sender's own frames stand before what came back to it.
        for mut frame in socket.drain(QUIET)? {
            if !frame.outgoing
                && let Some(probe) = whose(&mut frame.bytes)
            {
                seen.entry((probe, name)).or_default().push(frame.bytes);
            }
        }
    }
    for mut frame in wire.drain(QUIET)? {
        // What this test put on the wire itself is no evidence.
        if frame.outgoing
            && sender == Sender::Pod
            && let Some(probe) = inside(&mut frame.bytes)
        {
            let place = (probe, "the wire");
            seen.entry(place).or_default().push(frame.bytes);
        }
    }
    for mut frame in tags.frames()? {
        if let Some(probe) = whose(&mut frame) {
            seen.entry((probe, "neighbour, with its tag"))
                .or_default()
                .push(frame);
        }
    }
    // Two processors may deliver in any order.
    for frames in seen.values_mut() {
        frames.sort();
    }
    Ok(seen)
}

/// Which probe a frame carries in VXLAN. What the two paths may fill in differently is set to zero:
/// the identification of the outer packet, with its checksum, and the checksum of UDP.
fn inside(frame: &mut [u8]) -> Option<usize> {
    const VXLAN_PORT: [u8; 2] = 8472_u16.to_be_bytes();
    if frame.get(23)? != &UDP || frame.get(36..38)? != VXLAN_PORT {
        return None;
    }
    for varying in [18..20, 24..26, 40..42] {
        frame[varying].fill(0);
    }
    whose(frame.get_mut(50..)?)
}

/// Which probe a frame is, or is an answer to. What answers choose at random is set to zero.
fn whose(frame: &mut [u8]) -> Option<usize> {
    let id = |bytes: &[u8]| {
        let id = u16::from_be_bytes(bytes.get(4..6)?.try_into().ok()?);
        // So many probes at most that the numbers of fragments and ordinary packets stay apart.
        (FIRST_ID..FIRST_ID + 0x1000)
            .contains(&id)
            .then(|| usize::from(id - FIRST_ID))
    };
    let kind = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let start = if matches!(kind(12)?, VLAN | SERVICE_VLAN) {
        18
    } else {
        14
    };
    if kind(start - 2)? == IPV4 {
        let packet = frame.get_mut(start..)?;
        let header_len = usize::from(packet.first()? & 0x0f) * 4;
        let is_error =
            *packet.get(9)? == ICMP && matches!(packet.get(header_len), Some(3 | 11 | 12));
        if is_error && let Some(quoted) = packet.get(header_len + 8..).and_then(id) {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
            return Some(quoted);
        }
        return id(packet);
    }
    let mark = frame.windows(4).rfind(|window| window[..2] == MAGIC)?;
    Some(usize::from(u16::from_be_bytes([mark[2], mark[3]])))
}

fn differences(probes: &[Probe], slow: &Seen, fast: &Seen) -> Vec<String> {
    let mut keys: Vec<_> = slow.keys().chain(fast.keys()).collect();
    keys.sort();
    keys.dedup();
    let differs = keys
        .into_iter()
        .filter(|key| slow.get(key) != fast.get(key));
    differs
        .map(|key| {
            let show = |seen: &Seen| match seen.get(key) {
                None => "nothing".to_owned(),
                Some(frames) => frames
                    .iter()
                    .map(hex)
                    .collect::<Vec<_>>()
                    .join("\n    and "),
            };
            let name = probes.get(key.0).map_or("?", |probe| &probe.name);
            format!(
                "{name}, at {}:\n  kernel: {}\n  fast:   {}",
                key.1,
                show(slow),
                show(fast)
            )
        })
        .collect()
}

/// The hops that traceroute finds between pods of two nodes, by three protocols.
fn hops(lab: &Lab) -> Result<Vec<Vec<String>>> {
    let target = lab.pod(2, 2).address().to_string();
    let sender = lab.pod(1, 1);
    ["-U", "-I", "-T"]
        .iter()
        .map(|protocol| {
            let line = ["traceroute", "-n", "-q1", "-w2", "-m6", protocol, &target];
            let text = sender.run(line)?;
            let hop = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
            let hops: Vec<_> = text.lines().skip(1).filter_map(hop).collect();
            ensure!(
                hops.len() == 3 && hops[2] == target,
                "traceroute {protocol}: {text}"
            );
            Ok(hops)
        })
        .collect()
}

fn mac(namespace: &Namespace, device: &str) -> Result<[u8; 6]> {
    let text = namespace.run(["cat", &format!("/sys/class/net/{device}/address")])?;
    let bytes: Result<Vec<u8>, _> = text
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect();
    let bytes = bytes.with_context(|| format!("MAC address {text:?}"))?;
    bytes
        .try_into()
        .ok()
        .with_context(|| format!("MAC address {text:?}"))
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    let bytes: Vec<_> = bytes
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    bytes.join(":")
}
