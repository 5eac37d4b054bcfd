//! Conversations that outlive changes of the path.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::conversation::{Conversation, Transport};
use overlay_tests::fast_path;
use overlay_tests::pins::MAPS;
use overlay_tests::status::status;
use overlay_tests::{Lab, Node, wait_until};
use serde_json::json;

use super::cases::{both_speak, cases};
use super::cluster::Cluster;

/// Longest time until an agent has started or stopped the fast path.
pub const SWITCH: Duration = Duration::from_secs(20);
/// Silence in a conversation, long enough for all actions of the agent in between.
const IDLE: Duration = Duration::from_secs(2);

/// Ends the agents with `signal` and starts them again.
fn restart(lab: &Lab, signal: Signal, fast_path: &str) -> Result<()> {
    for node in lab.nodes() {
        node.stop_agent(signal)?;
        node.start_agent(&[&format!("--fast-path={fast_path}")])?;
        wait_for_state(
            &node,
            if fast_path == "auto" {
                "active"
            } else {
                "inactive"
            },
        )?;
    }
    Ok(())
}

/// Detaches all our programs, and waits until the agent has attached them again.
pub fn detach_all(node: &Node) -> Result<()> {
    let attached = |status: &serde_json::Value| {
        status["attachments"].as_array().map_or(0, |hooks| {
            hooks
                .iter()
                .filter(|hook| hook["programs"] != json!([]))
                .count()
        })
    };
    let before = attached(&status(node)?);
    ensure!(
        before >= 6,
        "only {before} programs of {} are attached",
        node.name()
    );
    fast_path::detach(node)?;
    wait_until("the programs to be back", SWITCH, || {
        status(node).is_ok_and(|status| attached(&status) == before)
    })
}

fn wait_for_state(node: &Node, state: &str) -> Result<()> {
    let what = format!("the fast path of {} to be {state}", node.name());
    wait_until(&what, SWITCH, || {
        status(node).is_ok_and(|status| status["fast_path"]["state"] == state)
    })
    .with_context(|| node.agent_log_tail())
}

/// Opens a conversation of each kind that the stack has to translate in both directions.
fn open_all(cluster: &Cluster, opened: &mut Vec<(String, Conversation)>, when: &str) -> Result<()> {
    for case in cases(cluster)? {
        for transport in Transport::ALL {
            let servers = cluster.servers(case.service, transport);
            let what = format!("{}, {transport}, opened {when}", case.what);
            let conversation = Conversation::open(&case.from, transport, case.target, &servers)
                .with_context(|| what.clone())?;
            both_speak(&conversation).with_context(|| what.clone())?;
            opened.push((what, conversation));
        }
    }
    Ok(())
}

pub fn all_speak(opened: &[(String, Conversation)], now: &str) -> Result<()> {
    let failures: Vec<String> = opened
        .iter()
        .filter_map(|(what, conversation)| {
            let error = both_speak(conversation).err()?;
            Some(format!("{what}: {error:#}"))
        })
        .collect();
    ensure!(failures.is_empty(), "{now}:\n{}", failures.join("\n"));
    Ok(())
}

/// Waits until every map of a node is pinned again, and the fast path serves.
fn wait_for_maps(node: &Node, maps: &str) -> Result<()> {
    wait_until("the maps to be pinned again", SWITCH, || {
        pinned(node).is_ok_and(|now| now == maps)
    })?;
    wait_for_state(node, "active")
}

fn pinned(node: &Node) -> Result<String> {
    node.run(["ls", &MAPS.to_string()])
}

/// Fills the table of flows that the IP stack owns with other flows, to its capacity.
fn fill_flows(node: &Node) -> Result<()> {
    let pin = format!("{MAPS}/ov_flows4");
    let map = node.json(["bpftool", "-j", "map", "show", "pinned", &pin])?;
    let size = |key: &str| {
        let size = map[key]
            .as_u64()
            .with_context(|| format!("the map's {key}"))?;
        anyhow::Ok(usize::try_from(size)?)
    };
    let (key, value) = (size("bytes_key")?, size("bytes_value")?);
    let script = format!(
        "seq 0 {} | awk '{{ printf \"map update pinned {pin} key 0 %d %d %d {}value {}\\n\", \
             int($1 / 65536), int($1 / 256) % 256, $1 % 256 }}' > /run/flows
         bpftool batch file /run/flows > /dev/null",
        size("max_entries")? - 1,
        "0 ".repeat(key - 4),
        "0 ".repeat(value)
    );
    node.run(["sh", "-ec", &script]).map(drop)
}

/// The programs' knowledge of the conversations is in maps.
#[test]
fn conversations_outlive_maps_that_are_lost_old_or_full() -> Result<()> {
    let cluster = Cluster::up("svc-maps", "auto")?;
    let lab = &cluster.lab;
    let maps = pinned(&lab.node(1))?;
    let mut opened = Vec::new();
    open_all(&cluster, &mut opened, "on the first maps")?;
    for node in lab.nodes() {
        node.run(["sh", "-c", &format!("rm {MAPS}/*")])?;
    }
    all_speak(&opened, "the maps are lost")?;
    for node in lab.nodes() {
        wait_for_maps(&node, &maps)?;
    }
    all_speak(&opened, "the maps are made anew")?;
    open_all(&cluster, &mut opened, "after the loss")?;

    for node in lab.nodes() {
        node.stop_agent(Signal::SIGTERM)?;
        let pin = format!("{MAPS}/ov_flows4");
        let other = "type hash key 4 value 4 entries 16 name ov_flows4";
        let script = format!("rm {pin} && bpftool map create {pin} {other}");
        node.run(["sh", "-c", &script])?;
        node.start_agent(&[])?;
        wait_for_maps(&node, &maps)?;
    }
    all_speak(&opened, "the maps were of an older layout")?;
    open_all(&cluster, &mut opened, "after the older layout")?;

    for node in lab.nodes() {
        fill_flows(&node)?;
    }
    all_speak(&opened, "the table of flows is full")?;
    open_all(&cluster, &mut opened, "with the table of flows full")?;
    all_speak(&opened, "all are open")
}

#[test]
fn long_lived_flows_outlive_every_change_of_path() -> Result<()> {
    let cluster = Cluster::up("svc-long", "off")?;
    let lab = &cluster.lab;
    let mut opened = Vec::new();
    open_all(&cluster, &mut opened, "before the fast path")?;
    restart(lab, Signal::SIGTERM, "auto")?;
    thread::sleep(IDLE);
    all_speak(&opened, "the fast path is on")?;
    open_all(&cluster, &mut opened, "with the fast path on")?;
    restart(lab, Signal::SIGKILL, "auto")?;
    all_speak(&opened, "the agents are new")?;
    for node in lab.nodes() {
        detach_all(&node)?;
        wait_for_state(&node, "active")?;
    }
    all_speak(&opened, "the programs were taken off and are back")?;
    for node in lab.nodes() {
        node.stop_agent(Signal::SIGKILL)?;
    }
    open_all(&cluster, &mut opened, "without an agent")?;
    all_speak(&opened, "there is no agent")?;
    for node in lab.nodes() {
        node.start_agent(&[])?;
    }
    restart(lab, Signal::SIGTERM, "off")?;
    all_speak(&opened, "the fast path is off")?;
    restart(lab, Signal::SIGTERM, "auto")?;
    all_speak(&opened, "the fast path is on again")
}
