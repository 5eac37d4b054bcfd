//! Work of the agent that is allowed, and not: on an idle node, with slow tools, with an address
//! that is missing for a moment.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::rest::wait_at_rest;
use overlay_tests::{Lab, Node, Options, wait_until};
use serde_json::Value;

/// Longest time for changes that netlink reports, because machines that run tests are slow.
const SOON: Duration = Duration::from_secs(4);
/// Longest time from a start to readiness.
const READY: Duration = Duration::from_secs(30);
/// Longer than every interval of the agent, except that of full looks.
const IDLE: Duration = Duration::from_secs(12);
/// The packet-filter programs that an agent may start.
const TOOLS: [&str; 7] = [
    "nft",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{text}\n"))?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// Starts the node's agent anew with each of [`TOOLS`] preceded by the lines that `before` makes
/// for the tool's name.
fn restart_with_tools(node: &Node, lab: &Lab, before: impl Fn(&str) -> String) -> Result<Tools> {
    let aside = tempfile::tempdir()?;
    for tool in TOOLS {
        let text = format!("{}\nPATH=${{PATH#*:}} exec {tool} \"$@\"", before(tool));
        script(&aside.path().join(tool), &text)?;
    }
    let (agent, overlayd) = (
        aside.path().join("agent"),
        lab.options().bin_dir.join("overlayd"),
    );
    let path = aside.path().display();
    script(
        &agent,
        &format!("PATH={path}:$PATH exec {} \"$@\"", overlayd.display()),
    )?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent_from(&agent, &[])?;
    Ok(Tools { _aside: aside })
}

struct Tools {
    _aside: tempfile::TempDir,
}

/// Nothing changes on the node, so the agent must start no program, whatever its intervals.
#[test]
fn an_idle_agent_starts_no_program() -> Result<()> {
    let lab = Lab::up(Options::for_test("idle"))?;
    let node = lab.node(1);
    let notes = tempfile::tempdir()?;
    let log: PathBuf = notes.path().join("started");
    let note = log.display().to_string();
    let _tools = restart_with_tools(&node, &lab, |tool| format!("echo {tool} $@ >> {note}"))?;
    node.wait_ready(READY)?;
    wait_at_rest(&node)?;
    let started = || fs::read_to_string(&log).unwrap_or_default();
    ensure!(!started().is_empty(), "the wrappers were never used");
    // The work after a start comes to an end.
    let mut before = started();
    wait_until("the start to come to rest", READY, || {
        sleep(Duration::from_secs(2));
        let now = started();
        std::mem::replace(&mut before, now.clone()) == now
    })?;
    sleep(IDLE);
    let after = started();
    ensure!(
        after == before,
        "started on an idle node: {}",
        after.trim_start_matches(&before)
    );
    // The wrappers still report.
    node.run(["iptables", "-t", "nat", "-F", "FLANNEL-POSTRTG"])?;
    wait_until("the rules to be looked at", READY, || started() != after)?;
    lab.down()
}

/// The entry of the one peer in the fast path's table begins with this MAC address.
fn goes_to(node: &Node, mac: &str) -> Result<()> {
    let mut last = String::new();
    wait_until(&format!("outer frames to {mac}"), SOON, || {
        last = first_peer(node).unwrap_or_default();
        last.starts_with(mac)
    })
    .with_context(|| format!("the peer is {last}; {}", node.agent_log_tail()))
}

fn first_peer(node: &Node) -> Result<String> {
    let pin = node.run(["sh", "-c", "ls -d /sys/fs/bpf/overlay/v*/maps/ov_peers4"])?;
    let entries = node.json(["bpftool", "-j", "map", "dump", "pinned", pin.trim()])?;
    let bytes = entries[0]["value"].as_array().context("no peer")?;
    let bytes = bytes.iter().filter_map(Value::as_str);
    Ok(bytes
        .map(|byte| byte.trim_start_matches("0x"))
        .collect::<Vec<_>>()
        .join(":"))
}

/// While `iptables-save` lists the rules of ten thousand Services, next hops and pods are followed
/// nevertheless.
#[test]
fn slow_tools_hold_up_nothing() -> Result<()> {
    let lab = Lab::up(Options::for_test("slow"))?;
    let (node, other) = (lab.node(1), lab.node(2).underlay_address());
    let aside = tempfile::tempdir()?;
    let hold = aside.path().join("hold");
    let busy = aside.path().join("busy");
    let (held, noted) = (hold.display().to_string(), busy.display().to_string());
    let _tools = restart_with_tools(&node, &lab, |tool| match tool {
        "nft" => String::new(),
        _ => format!("while [ -e {held} ]; do echo > {noted}; sleep 0.05; done"),
    })?;
    node.wait_ready(READY)?;
    fs::write(&hold, "")?;
    node.run(["iptables", "-t", "nat", "-F", "FLANNEL-POSTRTG"])?;
    wait_until("the rules to be looked at", READY, || busy.exists())?;
    for mac in ["02:00:00:00:00:a1", "02:00:00:00:00:a2"] {
        let replace = format!("ip neigh replace {other} lladdr {mac} dev eth0 nud permanent");
        node.run(["sh", "-c", &replace])?;
        goes_to(&node, mac)?;
    }
    let pods = node.pods().len();
    lab.add_pod(1)?;
    wait_until("the new pod to be known", SOON, || {
        node.json(["overlayctl", "status", "--output", "json"])
            .is_ok_and(|status| {
                let fast = |pod: &&Value| pod["path"] == "fast";
                let known = status["pods"].as_array();
                known.is_some_and(|known| known.iter().filter(fast).count() == pods + 1)
            })
    })
    .with_context(|| node.agent_log_tail())?;
    ensure!(hold.exists() && busy.exists(), "the tools were not held");
    fs::remove_file(&hold)?;
    wait_until("the rules to be put back", READY, || {
        node.run(["iptables-save", "-t", "nat"])
            .is_ok_and(|rules| rules.contains("-A FLANNEL-POSTRTG"))
    })?;
    lab.down()
}

/// A node with two suitable devices, one of which loses its address, as while a DHCP lease is
/// renewed.
#[test]
fn a_moment_without_an_address_moves_nothing() -> Result<()> {
    let options = Options {
        agent_args: vec!["--iface=eth0".to_owned(), "--iface-regex=eth1".to_owned()],
        ..Options::for_test("dhcp")
    };
    let lab = Lab::up(options)?;
    let node = lab.node(1);
    let own = node.underlay_address();
    node.run([
        "sh",
        "-c",
        "ip link add eth1 type veth peer name eth1-end
         ip address add 192.168.77.1/24 dev eth1; ip link set eth1 up; ip link set eth1-end up",
    ])?;
    let device = || node.run(["sh", "-c", "ip -d -o link show dev flannel.1"]);
    let leases = || lab.etcdctl(&["get", "--prefix", "/coreos.com/network/subnets"]);
    let (before, leases_before) = (device()?, leases()?);
    let save = node.run(["sh", "-c", "ip -4 -o address show dev eth0"])?;
    let prefix = save
        .split_whitespace()
        .find(|word| word.starts_with(&format!("{own}/")))
        .context("no address on eth0")?
        .to_owned();
    node.run(["ip", "address", "del", &prefix, "dev", "eth0"])?;
    wait_until("the agent to notice", SOON, || {
        node.http_get("/readyz")
            .is_ok_and(|answer| answer.body.contains("waiting"))
    })
    .with_context(|| node.agent_log_tail())?;
    node.run(["ip", "address", "add", &prefix, "dev", "eth0"])?;
    wait_until("the agent to be well", READY, || {
        node.http_get("/readyz")
            .is_ok_and(|answer| answer.status == 200 && !answer.body.contains("waiting"))
    })
    .with_context(|| node.agent_log_tail())?;
    ensure!(
        device()? == before,
        "the device was made anew: {}",
        device()?
    );
    ensure!(leases()? == leases_before, "the lease changed");
    lab.down()
}
