//! Invented packets have the same result on both paths: the kernel's own path is an oracle that
//! shares no code with ours.
//!
//! Every packet is sent three times: twice by the kernel path, to find out which results are the
//! same every time, then by the fast path. A packet that is refused must be refused on both: by the
//! programs, and by the guard of the kernel path. `OVERLAY_FUZZ_SEED` and `OVERLAY_FUZZ_PACKETS`
//! select other or more packets.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_cases::world::{Change as _, NIC_MAC, PEER_VTEP_MAC, VETH_A, World, peer, world};
use overlay_common::Hook;
use overlay_common::schema::{ENDPOINT_ADDRESSES, Endpoint, PodEntry, Vtep};
use overlay_differential::Visit;
use overlay_differential::mutate::{Mutator, Pool, layout};
use overlay_tests::fast_path::packets;
use overlay_tests::{Lab, Node, Options, Pod};

use crate::corpus::{Corpus, FIRST_ID, Fast};
use crate::seen::{Seen, Sender, differences, send};
use crate::wire::{ICMP, IPV4};
use crate::{mac, prepare, switch_on, tunnel, ways};

/// Number of packets of each kind: from a pod, and from another node.
const PACKETS: usize = 500;
/// Number of identifications that distinguish probes.
const MOST: usize = 0x1000;
/// Longest frame of the underlay and of pods' devices.
const LONGEST: usize = 1514;
/// Slightly longer than the stack waits for the rest of a fragmented packet here.
const FRAGMENTS_END: Duration = Duration::from_millis(2500);

#[test]
fn made_up_packets_fare_alike() -> Result<()> {
    let seed = number("OVERLAY_FUZZ_SEED")?.unwrap_or(8472);
    let count = number("OVERLAY_FUZZ_PACKETS")?.map_or(PACKETS, |count| count as usize);
    ensure!(count < MOST, "OVERLAY_FUZZ_PACKETS: at most {}", MOST - 1);
    let lab = Lab::up(Options {
        fast_path: "off".to_owned(),
        ..Options::for_test("made-up")
    })?;
    prepare(&lab)?;
    quieten(&lab)?;
    let mut mutator = Mutator::new(seed);
    let mut make = |seeds: &Corpus, hook, world: &World, receiver| {
        made_up(&mut mutator, seeds, hook, world, receiver, count)
    };
    let receiver = mac(&lab.node(2).namespace(), "eth0")?;
    let sent = make(&ways(&lab)?, Hook::PodIn, &sending_node(&lab)?, None)?;
    let injected = make(
        &tunnel(&lab)?,
        Hook::NetIn,
        &receiving_node(&lab)?,
        Some(receiver),
    )?;

    let all = |lab: &Lab| -> Result<(Seen, Seen)> {
        // Masquerading chooses random ports, and keeps them while it remembers the flow.
        for node in lab.nodes() {
            node.run(["conntrack", "-F"])?;
        }
        let from_pod = send(lab, &sent.probes, Sender::Pod)?;
        std::thread::sleep(FRAGMENTS_END);
        let from_node = send(lab, &injected.probes, Sender::Node)?;
        std::thread::sleep(FRAGMENTS_END);
        Ok((settled(from_pod), settled(from_node)))
    };
    let (slow, again) = (all(&lab)?, all(&lab)?);
    for node in lab.nodes() {
        switch_on(&node)?;
    }
    let fast = all(&lab)?;

    let mut differ = Vec::new();
    let (mut compared, mut undecided) = (0, 0);
    for (probes, slow, again, fast) in [
        (&sent.probes, &slow.0, &again.0, &fast.0),
        (&injected.probes, &slow.1, &again.1, &fast.1),
    ] {
        let steady = |key: &(usize, &'static str)| slow.get(key) == again.get(key);
        undecided += slow.keys().filter(|key| !steady(key)).count();
        compared += probes.len();
        let only = |seen: &Seen| -> Seen {
            let kept = seen.iter().filter(|(key, _)| steady(key));
            kept.map(|(key, frames)| (*key, frames.clone())).collect()
        };
        for difference in differences(probes, &only(slow), &only(fast)) {
            differ.push(difference);
        }
    }
    let (n1, n2) = (lab.node(1), lab.node(2));
    let carried = [
        packets(&n1, "pod_in", "redirected")?,
        packets(&n1, "pod_in", "encapsulated")?,
        packets(&n2, "net_in", "decapsulated")?,
    ];
    println!(
        "seed {seed}: {compared} packets by both paths, {carried:?} redirected, encapsulated, \
        decapsulated; {undecided} sights differ from run to run by the kernel path alone"
    );
    // Otherwise the comparison would be empty.
    ensure!(
        carried.iter().all(|packets| *packets > 0),
        "the fast path carried {carried:?}"
    );
    ensure!(
        undecided * 20 < compared,
        "{undecided} of {compared} differ by the kernel path alone"
    );
    ensure!(
        differ.is_empty(),
        "seed {seed}: {} of {compared} differ:\n{}",
        differ.len(),
        differ.join("\n")
    );
    Ok(())
}

fn number(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else {
        return Ok(None);
    };
    let number = text
        .parse()
        .with_context(|| format!("{variable}={text}: not a number"))?;
    Ok(Some(number))
}

/// No host answers, and no table learns from forged packets, so that the result of a packet depends
/// on the packet alone.
fn quieten(lab: &Lab) -> Result<()> {
    for pod in [lab.pod(1, 1), lab.pod(2, 2)] {
        pod.run(["iptables", "-w", "-I", "INPUT", "-j", "DROP"])?;
    }
    for node in lab.nodes() {
        node.run(["sysctl", "-qw", "net.ipv4.ipfrag_time=1"])?;
        // The kernel path's stack sends errors about outer IP options of refused VXLAN before the
        // guard sees the packet; a program at the NIC refuses first.
        let complaint = format!(
            "-s {} -p icmp --icmp-type parameter-problem",
            node.underlay_address()
        );
        node.run([
            "sh",
            "-c",
            &format!("iptables -w -I OUTPUT {complaint} -j DROP"),
        ])?;
    }
    for pod in lab.pods() {
        pod.run(["sysctl", "-qw", "net.ipv4.ipfrag_time=1"])?;
        let (node, port) = (pod.node(), pod.host_interface()?);
        node.run(["bridge", "link", "set", "dev", &port, "learning", "off"])?;
        let address = crate::seen::hex(mac(&pod.namespace(), "eth0")?);
        node.run([
            "bridge", "fdb", "replace", &address, "dev", &port, "master", "static",
        ])?;
    }
    Ok(())
}

/// The parts of an error that depend on time are left out: the wait for a neighbour or a fragment.
fn settled(seen: Seen) -> Seen {
    let of_time = |frame: &Vec<u8>| {
        frame.get(12..14) == Some(&IPV4.to_be_bytes())
            && frame.get(23) == Some(&ICMP)
            && matches!(frame.get(34..36), Some([3, 1] | [11, 1]))
    };
    seen.into_iter()
        .filter_map(|(key, mut frames)| {
            frames.retain(|frame| !of_time(frame));
            (!frames.is_empty()).then_some((key, frames))
        })
        .collect()
}

fn made_up(
    mutator: &mut Mutator,
    seeds: &Corpus,
    hook: Hook,
    world: &World,
    receiver: Option<[u8; 6]>,
    count: usize,
) -> Result<Corpus> {
    let seeds: Vec<&Vec<u8>> = seeds
        .probes
        .iter()
        .filter_map(|probe| match &probe.frames[..] {
            [frame] => Some(frame),
            _ => None,
        })
        .collect();
    let pool = Pool::of(world);
    let port = world.config.map_or(0, |config| config.port);
    let mut corpus = Corpus::default();
    while corpus.probes.len() < count {
        let frame = mutator.pick(&seeds).context("probes to begin with")?;
        let mut visit = Visit {
            hook,
            frame: (*frame).clone(),
            ifindex: VETH_A,
            device_mac: NIC_MAC,
            gso_size: 0,
            vlan: None,
            handed_over: 0,
        };
        mutator.visit(&mut visit, world, &pool);
        let mut frame = visit.frame;
        if let (Some(receiver), true) = (receiver, frame.starts_with(&NIC_MAC)) {
            frame[..6].copy_from_slice(&receiver);
        }
        let is_ip = layout::layers(&frame, port)
            .first()
            .is_some_and(|layer| layer.ip.is_some());
        if !is_ip {
            frame.extend(corpus.mark());
        }
        if frame.len() > LONGEST {
            continue;
        }
        layout::label(&mut frame, port, corpus.id());
        let name = format!(
            "number {} ({})",
            corpus.id() - FIRST_ID,
            overlay_differential::expected::hex(&frame)
        );
        corpus.push(name, vec![frame], Fast::No);
    }
    Ok(corpus)
}

/// The tables of the first node that packets are aimed by.
fn sending_node(lab: &Lab) -> Result<World> {
    let (sender, neighbour) = (lab.pod(1, 1), lab.pod(1, 2));
    let mut world = node_world(&lab.node(1), &lab.node(2), &[sender.clone(), neighbour])?;
    let endpoint = Endpoint {
        addresses: [sender.address().octets(); ENDPOINT_ADDRESSES],
        mac: mac(&sender.namespace(), "eth0")?,
        flags: 0,
        owner: 0,
    };
    world.endpoints = BTreeMap::from([(VETH_A, endpoint)]);
    Ok(world)
}

/// The tables of the second node that packets are aimed by.
fn receiving_node(lab: &Lab) -> Result<World> {
    node_world(&lab.node(2), &lab.node(1), &[lab.pod(2, 1), lab.pod(2, 2)])
}

fn node_world(node: &Node, other: &Node, pods: &[Pod]) -> Result<World> {
    let mut world = world();
    let subnet = |node: &Node| Ok::<_, anyhow::Error>(node.subnet()?.network().octets());
    let config = world.config_mut();
    config.subnet = subnet(node)?;
    config.gateway = config.subnet;
    config.gateway[3] += 1;
    config.vtep = node.underlay_address().octets();
    config.vtep_mac = mac(&node.namespace(), "flannel.1")?;
    config.bridge_mac = mac(&node.namespace(), "cni0")?;
    let mut entry = peer(other.underlay_address().octets());
    entry.header[50..56].copy_from_slice(&PEER_VTEP_MAC);
    world.peers = BTreeMap::from([(subnet(other)?, entry)]);
    world.vteps = BTreeMap::from([(entry.vtep, Vtep { subnets: 1 })]);
    world.endpoints.clear();
    world.pods.clear();
    for pod in pods {
        let entry = PodEntry {
            ifindex: VETH_A,
            mtu: 1450,
            mac: mac(&pod.namespace(), "eth0")?,
            flags: 0,
            owner: 0,
        };
        world.pods.insert(pod.address().octets(), entry);
    }
    Ok(world)
}
