//! Counts the objects of a node: memory, descriptors, devices, map entries, files, rules.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::series::{Inventory, Name, Rule};
use super::stage::Stage;
use crate::Node;
use crate::pins::MAPS;
use crate::process::Process;

/// The node whose agent is never ended.
pub const STEADY_NODE: &str = "n2";
/// The name of the agent's memory in the report.
pub const MEMORY: &str = "agent: resident memory, KiB";
/// Growth of memory that an allocator can cause by itself, in hundredths.
const MEMORY_MOOD: u64 = 5;
/// Seconds until flows have expired: a flow may be removed a minute after its last packet, and
/// there is a check every twenty seconds.
const FLOWS_FADE: u64 = 100;
/// The longest timeout of connection tracking for ended conversations; see [`Stage::up`].
const CONNTRACK_FADE: u64 = 30;
/// Time-out of addresses that a bridge has learned, in seconds: the kernel's default.
const BRIDGE_FADE: u64 = 300;
/// The lines of a command's output.
struct Lines {
    quantity: &'static str,
    rule: Rule,
    /// A shell command; when the command fails there is no count.
    command: &'static str,
    /// Which of the lines count.
    counts: fn(&str) -> bool,
}

/// Counts every line of a command.
const fn every(quantity: &'static str, rule: Rule, command: &'static str) -> Lines {
    Lines {
        quantity,
        rule,
        command,
        counts: |_| true,
    }
}

const LINES: &[Lines] = &[
    every("devices", Rule::Same, "ip -o link show"),
    every("veths", Rule::Same, "ip -o link show type veth"),
    every("addresses", Rule::Same, "ip -o -4 address show"),
    every("namespace ids", Rule::Same, "ip netns list-id"),
    every("routes", Rule::Same, "ip -4 route show table all"),
    every("routes of ours", Rule::Same, "ip -4 route show proto 111"),
    every(
        "neighbours on the VXLAN device",
        Rule::Same,
        "ip -4 neighbour show dev flannel.1",
    ),
    Lines {
        counts: |line| line.contains("dst"),
        ..every(
            "FDB entries of the VXLAN device",
            Rule::Same,
            "bridge fdb show dev flannel.1",
        )
    },
    every(
        "FDB entries of the bridge",
        Rule::Fades(BRIDGE_FADE),
        "bridge fdb show br cni0",
    ),
    // The kernel collects neighbour entries of the invented nodes.
    every(
        "neighbours on the underlay",
        Rule::Told,
        "ip -4 neighbour show dev eth0",
    ),
    // An empty clsact may belong to another program, so the agent does not remove it.
    Lines {
        counts: |line| !line.contains("clsact"),
        ..every("qdiscs besides clsact", Rule::Same, "tc qdisc show")
    },
    Lines {
        counts: |line| line.contains("clsact"),
        ..every("clsact qdiscs", Rule::Told, "tc qdisc show")
    },
    Lines {
        counts: |line| line.contains("ov_"),
        ..every(
            "filters by clsact",
            Rule::Same,
            "tc qdisc show | sed -n 's/^qdisc clsact .* dev \\([^ ]*\\) .*/\\1/p' | while read -r \
            device; do
                 tc filter show dev $device ingress && tc filter show dev $device egress || exit
             done",
        )
    },
    every("pins", Rule::Same, "find /sys/fs/bpf -type f"),
    every(
        "pinned links",
        Rule::Same,
        "ls /sys/fs/bpf/overlay/v*/links",
    ),
    every("IPAM files", Rule::Same, "find /var/lib/cni -type f"),
    every(
        "files in /run",
        Rule::Same,
        "find /run/flannel /run/overlay /run/lock -type f",
    ),
    Lines {
        counts: |line| line.starts_with("-A"),
        ..every("iptables rules", Rule::Same, "iptables-save")
    },
    every(
        "tracked connections",
        Rule::Fades(CONNTRACK_FADE),
        "conntrack -L",
    ),
];

/// Reads all quantities.
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

/// Quantities of the agent's process; a process that has just been started has lower ones than
/// later.
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

/// The number in a line `Name:   123 kB`.
fn kib(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number
        .with_context(|| format!("no {name}"))?
        .parse()
        .with_context(|| format!("the number after {name}"))
}

fn lines(node: &Node, note: &mut impl FnMut(&str, Rule, u64)) -> Result<()> {
    for lines in LINES {
        let what = || format!("count {} of {}", lines.quantity, node.name());
        let text = node.run(["sh", "-c", lines.command]).with_context(what)?;
        let count = text.lines().filter(|line| (lines.counts)(line)).count();
        note(lines.quantity, lines.rule, count as u64);
    }
    Ok(())
}

fn maps(node: &Node, note: &mut impl FnMut(&str, Rule, u64)) -> Result<()> {
    for (map, rule) in [
        ("ov_pods4", Rule::Same),
        ("ov_endpoints4", Rule::Same),
        ("ov_peers4", Rule::Same),
        ("ov_vteps4", Rule::Same),
        ("ov_flows4", Rule::Fades(FLOWS_FADE)),
    ] {
        let pin = format!("{MAPS}/{map}");
        let entries = node.json(["bpftool", "-j", "map", "dump", "pinned", &pin])?;
        let count = length(&entries).with_context(|| format!("count the entries of {map}"))?;
        note(&format!("entries of {map}"), rule, count);
    }
    let status = crate::status::status(node)?;
    let hooks = status["attachments"].as_array().context("no attachments")?;
    let programs = hooks.iter().map(|hook| length(&hook["programs"]));
    note(
        "attached programs",
        Rule::Same,
        programs.sum::<Result<_>>()?,
    );
    Ok(())
}

/// Objects of nftables of any origin, and the elements of sets and maps.
fn packet_filter(node: &Node, note: &mut impl FnMut(&str, Rule, u64)) -> Result<()> {
    let ruleset = node.json(["nft", "-j", "list", "ruleset"])?;
    let objects = ruleset["nftables"].as_array().context("no nftables")?;
    // The output has no list of elements for a set without elements.
    let elements = |object: &Value| {
        let sets = ["set", "map"].map(|kind| object[kind]["elem"].as_array().map_or(0, Vec::len));
        sets.iter().sum::<usize>() as u64
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
    let names = fs::read_dir(crate::netns::NETNS_DIR)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    let ours = names.iter().filter(|name| name.starts_with(&prefix));
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

fn length(value: &Value) -> Result<u64> {
    let list = value
        .as_array()
        .with_context(|| format!("not a list: {value}"))?;
    Ok(list.len() as u64)
}
