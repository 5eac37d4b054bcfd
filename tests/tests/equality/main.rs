//! The packets that arrive are the same, byte for byte, whether the fast path or the kernel carries
//! them, and so are the packets on the wire between.
//!
//! There is one lab; the same packets are sent twice, first with the fast path off, then with it
//! on. No other state changes between, so MAC addresses and pod addresses stay. Receiving pods
//! answer nothing, so that the counters of the fast path can be compared with the expected ones,
//! packet by packet.

mod corpus;
mod injected;
mod made_up;
mod seen;
mod sent;
mod tags;
mod wire;

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::fast_path::{packets, wait_serving};
use overlay_tests::{BackendKind, Lab, Namespace, Node, Options, Pod};

use corpus::{Corpus, Fast, Probe};
use injected::{Tunnel, nobody};
use seen::{Sender, differences, hex, send};
use sent::Way;
use wire::NOBODY;

#[test]
fn a_capture_cannot_tell_the_paths_apart() -> Result<()> {
    let lab = Lab::up(Options {
        fast_path: "off".to_owned(),
        ..Options::for_test("equality")
    })?;
    prepare(&lab)?;
    let sent = ways(&lab)?;
    let injected = tunnel(&lab)?;
    let stacks = stack(&lab)?;

    let slow = (
        send(&lab, &sent.probes, Sender::Pod)?,
        send(&lab, &injected.probes, Sender::Node)?,
        send(&lab, &stacks.probes, Sender::Stack)?,
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
    let (hook, verdict) = ("vtep_out", "encapsulated_for_stack");
    let for_stack = packets(&n1, hook, verdict)?;
    let fast_from_stack = send(&lab, &stacks.probes, Sender::Stack)?;
    let for_stack = packets(&n1, hook, verdict)? - for_stack;

    let mut failures = differences(&sent.probes, &slow.0, &fast_from_pod);
    failures.extend(differences(&injected.probes, &slow.1, &fast_from_node));
    failures.extend(differences(&stacks.probes, &slow.2, &fast_from_stack));
    for (probes, seen) in [
        (&sent.probes, &slow.0),
        (&injected.probes, &slow.1),
        (&stacks.probes, &slow.2),
    ] {
        let lost = |index: &usize| !seen.keys().any(|(probe, _)| probe == index);
        for (index, probe) in probes.iter().enumerate() {
            if probe.fast == Fast::Whole && lost(&index) {
                failures.push(format!("{} arrived nowhere", probe.name));
            }
        }
    }
    // Otherwise the kernel could have carried all packets, which would make both results equal.
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
        (
            "of the stack encapsulated",
            for_stack,
            // The path check uses ICMP over the kernel's path.
            count(&stacks.probes, &|p| {
                p.fast != Fast::No && !p.name.contains("ICMP")
            }),
        ),
    ] {
        // The counters may be higher, because of answers of the pods' own stacks, and of packets
        // that this node's kernel encapsulated.
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

/// The same comparison for pods of nodes on one link, whose packets are not encapsulated.
#[test]
fn a_capture_cannot_tell_the_paths_apart_without_encapsulation() -> Result<()> {
    let options = Options {
        fast_path: "off".to_owned(),
        ..Options::for_test("equality-direct")
    };
    let lab = Lab::up(options.with_backend(BackendKind::HostGw))?;
    prepare(&lab)?;
    let sent = ways(&lab)?;
    let slow = send(&lab, &sent.probes, Sender::Pod)?;
    let slow_hops = hops(&lab)?;
    for node in lab.nodes() {
        switch_on(&node)?;
    }
    let fast = send(&lab, &sent.probes, Sender::Pod)?;
    let routed = packets(&lab.node(1), "pod_in", "routed")?;
    let delivered = packets(&lab.node(2), "net_in", "redirected")?;
    let fast_hops = hops(&lab)?;

    let mut failures = differences(&sent.probes, &slow, &fast);
    let whole =
        |probe: &&Probe| probe.name.starts_with("to another node") && probe.fast == Fast::Whole;
    let expected = sent.probes.iter().filter(whole).count() as u64;
    // Otherwise the kernel could have carried all packets, which would make both results equal.
    if routed.min(delivered) < expected {
        failures.push(format!(
            "{routed} packets routed and {delivered} delivered, at least {expected} should \
            have been"
        ));
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
        sent.probes.len(),
        failures.join("\n")
    );
    Ok(())
}

/// Makes the lab able to send and receive odd packets, and silent otherwise.
fn prepare(lab: &Lab) -> Result<()> {
    let everyone = lab.nodes().into_iter().map(|node| node.namespace());
    let pods = lab.pods().into_iter().map(|pod| pod.namespace());
    for namespace in everyone.chain(pods) {
        // Every error causes an ICMP message here, without a rate limit, because redirects depend
        // on the number of earlier ones.
        for setting in [
            "net.ipv4.icmp_ratelimit=0",
            "net.ipv4.icmp_ratemask=0",
            "net.ipv4.conf.all.send_redirects=0",
        ] {
            namespace.run(["sysctl", "-qw", setting])?;
        }
        // The setting exists per namespace since Linux 6.13, and was global before, where it cannot
        // be changed here.
        let _ = namespace.exec(["sysctl", "-qw", "net.ipv4.icmp_msgs_per_sec=100000"])?;
        let _ = namespace.exec(["sysctl", "-qw", "net.ipv4.icmp_msgs_burst=100000"])?;
    }
    for pod in [lab.pod(1, 2), lab.pod(2, 1)] {
        pod.run(["iptables", "-w", "-I", "INPUT", "-j", "DROP"])?;
    }
    let node = lab.node(1);
    node.run(["sysctl", "-qw", "net.ipv4.conf.cni0.send_redirects=0"])?;
    // The sender may send longer packets than the overlay carries.
    let sender = lab.pod(1, 1);
    let outside = sender.host_interface()?;
    node.run(["ip", "link", "set", &outside, "mtu", "1500"])?;
    sender.run(["ip", "link", "set", "eth0", "mtu", "1500"])?;
    // The kernel path must not wait for neighbours, nor find out only after seconds that there is
    // none.
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

/// Packets from the first node's address on the VXLAN device to a pod of the other node.
fn stack(lab: &Lab) -> Result<Corpus> {
    let mut corpus = Corpus::default();
    corpus.add_stacks(&Way {
        name: "the stack's,",
        source: lab.node(1).subnet()?.network(),
        destination: lab.pod(2, 1).address(),
        // The stack fills in its own address.
        mac: NOBODY,
        next_hop: NOBODY,
        plain: Fast::Whole,
        routed: false,
    });
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
