//! Counting what a node has: memory, descriptors, devices, map entries, files, rules.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::series::{Inventory, Name, Rule};
use super::stage::Stage;
use crate::Node;
use crate::process::Process;

/// The node whose agent is never ended.
pub const STEADY_NODE: &str = "n2";
/// Its memory, as it is called in the report.
pub const MEMORY: &str = "agent: resident memory, KiB";
/// Growth of memory that is nothing but an allocator's mood, in hundredths.
const MEMORY_MOOD: u64 = 5;
/// A minute after the last packet a flow may go, and every twenty seconds somebody looks.
const FLOWS_FADE: u64 = 100;
/// The longest time-out of connection tracking that ended conversations are left with; see
/// [`Stage::up`].
const CONNTRACK_FADE: u64 = 30;
/// Time-out of addresses that a bridge has learned, in seconds: the kernel's default.
const BRIDGE_FADE: u64 = 300;
/// Where the maps are pinned.
const MAPS: &str = "/sys/fs/bpf/overlay/v2/maps";

/// What `wc -l` counts: the quantity, its rule and the command.
const LINES: &[(&str, Rule, &str)] = &[
    ("devices", Rule::Same, "ip -o link show"),
    ("veths", Rule::Same, "ip -o link show type veth"),
    ("addresses", Rule::Same, "ip -o -4 address show"),
    ("namespace ids", Rule::Same, "ip netns list-id"),
    ("routes", Rule::Same, "ip -4 route show table all"),
    ("routes of ours", Rule::Same, "ip -4 route show proto 111"),
    (
        "neighbours on the VXLAN device",
        Rule::Same,
        "ip -4 neighbour show dev flannel.1",
    ),
    (
        "FDB entries of the VXLAN device",
        Rule::Same,
        "bridge fdb show dev flannel.1 | grep dst",
    ),
    (
        "FDB entries of the bridge",
        Rule::Fades(BRIDGE_FADE),
        "bridge fdb show br cni0",
    ),
    // Those of nodes that never were are the kernel's to collect.
    (
        "neighbours on the underlay",
        Rule::Told,
        "ip -4 neighbour show dev eth0",
    ),
    // An empty clsact may be somebody else's, so the agent leaves it.
    (
        "qdiscs besides clsact",
        Rule::Same,
        "tc qdisc show | grep -v clsact",
    ),
    ("clsact qdiscs", Rule::Told, "tc qdisc show | grep clsact"),
    (
        "filters by clsact",
        Rule::Same,
        "for device in $(ls /sys/class/net); do
             tc filter show dev $device ingress; tc filter show dev $device egress
         done | grep ov_",
    ),
    ("pins", Rule::Same, "find /sys/fs/bpf -type f"),
    (
        "pinned links",
        Rule::Same,
        "ls /sys/fs/bpf/overlay/v2/links",
    ),
    ("IPAM files", Rule::Same, "find /var/lib/cni -type f"),
    (
        "files in /run",
        Rule::Same,
        "find /run/flannel /run/overlay /run/lock -type f",
    ),
    ("iptables rules", Rule::Same, "iptables-save | grep ^-A"),
    (
        "tracked connections",
        Rule::Fades(CONNTRACK_FADE),
        "conntrack -L",
    ),
];

/// Looks at everything.
pub fn take(stage: &Stage) -> Result<Inventory> {
    let mut inventory = Inventory::new();
    for node in stage.lab.nodes() {
        let place = node.name();
        let mut note = |quantity: &str, rule: Rule, value: u64| {
            let name = Name {
                place: place.clone(),
                quantity: quantity.to_owned(),
            };
            inventory.insert(name, (value, rule));
        };
        agent(&node, &mut note)?;
        lines(&node, &mut note)?;
        maps(&node, &mut note)?;
        packet_filter(&node, &mut note)?;
    }
    machine(stage, &mut inventory)?;
    Ok(inventory)
}

/// Of the agent's process; one that has just been started has less than it will.
fn agent(node: &Node, note: &mut impl FnMut(&str, Rule, u64)) -> Result<()> {
    let Process { pid, .. } = node.agent().context("a node without an agent")?;
    let process = Path::new("/proc").join(pid.to_string());
    let rollup = fs::read_to_string(process.join("smaps_rollup")).context("read smaps_rollup")?;
    let memory = if node.name() == STEADY_NODE {
        Rule::Steady(MEMORY_MOOD)
    } else {
        Rule::Told
    };
    note(MEMORY, memory, kib(&rollup, "Rss:")?);
    note(
        "agent: proportional memory, KiB",
        Rule::Told,
        kib(&rollup, "Pss:")?,
    );
    note(
        "agent: private dirty memory, KiB",
        memory,
        kib(&rollup, "Private_Dirty:")?,
    );
    let open = fs::read_dir(process.join("fd"))?.count() as u64;
    note("agent: file descriptors", Rule::Fades(0), open);
    let threads = fs::read_dir(process.join("task"))?.count() as u64;
    note("agent: threads", Rule::Told, threads);
    Ok(())
}

/// A line `Name:   123 kB`.
fn kib(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number
        .with_context(|| format!("no {name}"))?
        .parse()
        .with_context(|| format!("the number after {name}"))
}

fn lines(node: &Node, note: &mut impl FnMut(&str, Rule, u64)) -> Result<()> {
    let script: String = LINES
        .iter()
        .map(|(_, _, command)| format!("{{ {command}; }} 2>/dev/null | wc -l\n"))
        .collect();
    let counts = node.run(["sh", "-c", &script])?;
    for ((quantity, rule, _), count) in LINES.iter().zip(counts.lines()) {
        note(quantity, *rule, count.trim().parse()?);
    }
    Ok(())
}

fn maps(node: &Node, note: &mut impl FnMut(&str, Rule, u64)) -> Result<()> {
    for (map, rule) in [
        ("ov_pods", Rule::Same),
        ("ov_endpoints", Rule::Same),
        ("ov_peers", Rule::Same),
        ("ov_vteps", Rule::Same),
        ("ov_flows", Rule::Fades(FLOWS_FADE)),
    ] {
        let pin = format!("{MAPS}/{map}");
        let entries = node.json(["bpftool", "-j", "map", "dump", "pinned", &pin])?;
        note(&format!("entries of {map}"), rule, length(&entries));
    }
    let status = crate::status::status(node)?;
    let hooks = status["attachments"].as_array().into_iter().flatten();
    let programs = hooks.map(|hook| length(&hook["programs"])).sum();
    note("attached programs", Rule::Same, programs);
    Ok(())
}

/// Objects of nftables, whoever made them, and the elements of sets and maps.
fn packet_filter(node: &Node, note: &mut impl FnMut(&str, Rule, u64)) -> Result<()> {
    let ruleset = node.json(["nft", "-j", "list", "ruleset"])?;
    let objects = ruleset["nftables"].as_array().context("no nftables")?;
    let elements = |object: &Value| {
        let sets = ["set", "map"].map(|kind| length(&object[kind]["elem"]));
        sets.iter().sum::<u64>()
    };
    note("nftables objects", Rule::Same, objects.len() as u64);
    note(
        "nftables set elements",
        Rule::Same,
        objects.iter().map(elements).sum(),
    );
    Ok(())
}

fn machine(stage: &Stage, inventory: &mut Inventory) -> Result<()> {
    let mut note = |quantity: &str, rule, value| {
        let name = Name {
            place: "machine".to_owned(),
            quantity: quantity.to_owned(),
        };
        inventory.insert(name, (value, rule));
    };
    let prefix = stage.lab.options().prefix;
    let ours = fs::read_dir(crate::netns::NETNS_DIR)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    note("namespaces of the lab", Rule::Same, ours.count() as u64);
    let memory = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    for (quantity, field) in [
        ("kernel: slab that stays, KiB", "SUnreclaim:"),
        ("kernel: per-CPU memory, KiB", "Percpu:"),
        ("kernel: vmalloc, KiB", "VmallocUsed:"),
    ] {
        note(quantity, Rule::Told, kib(&memory, field)?);
    }
    Ok(())
}

fn length(value: &Value) -> u64 {
    value.as_array().map_or(0, Vec::len) as u64
}
