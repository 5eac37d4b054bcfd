//! Notes for an operator on a node that carries traffic, but has a fault.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_common::packet::{ETHERNET_LEN, TCP};
use overlay_tests::fast_path::{packets, wait_serving};
use overlay_tests::packet::RawSocket;
use overlay_tests::status::status;
use overlay_tests::{Lab, Node, Options, reach, traffic, wait_until};
use serde_json::{Value, json};

/// Three requests without an answer take some seconds, and a peer that does not answer gets another
/// request every ten.
const LIMIT: Duration = Duration::from_secs(40);
/// Longest time until a capture that holds all frames returns the next one.
const QUIET: Duration = Duration::from_millis(20);

fn lab(name: &str) -> Result<Lab> {
    Lab::up(Options {
        pods: 1,
        ..Options::for_test(name)
    })
}

/// Waits for a text in a ready node's notes, or for its end.
fn wait_noted(node: &Node, text: &str, noted: bool) -> Result<()> {
    wait_until(&format!("{text:?} to be noted: {noted}"), LIMIT, || {
        node.http_get("/readyz")
            .is_ok_and(|answer| answer.status == 200 && answer.body.contains(text) == noted)
    })
    .with_context(|| node.agent_log_tail())
}

#[test]
fn a_firewall_that_drops_vxlan_is_told_although_the_fast_path_works() -> Result<()> {
    let lab = lab("firewall")?;
    let (one, other) = (lab.node(1), lab.node(2));
    other.run([
        "nft",
        "table inet firewall { chain input { type filter hook input priority 0; udp dport 8472 \
        drop; }; }",
    ])?;
    // A new agent sends requests at once, and not only in its next turn.
    one.stop_agent(Signal::SIGTERM)?;
    one.start_agent(&[])?;
    let subnet = other.subnet()?.to_string();
    let note = format!("no answer over the kernel path from {subnet}");
    wait_noted(&one, &note, true)?;
    let metrics = one.http_get("/metrics")?.body;
    ensure!(
        metrics.contains("\noverlay_peers_unreachable 1\n"),
        "{metrics}"
    );
    wait_until("status to name the peer", LIMIT, || {
        status(&one).is_ok_and(|status| status["unreachable"][0]["subnet"] == *subnet)
    })?;
    traffic::tcp(&(&lab.pod(1, 1)).into(), &(&lab.pod(2, 1)).into(), 10_000)
        .context("the fast path does not pass the firewall")?;

    other.run(["nft", "delete table inet firewall"])?;
    wait_noted(&one, "no answer over the kernel path", false)?;
    wait_until("status to be content", LIMIT, || {
        status(&one).is_ok_and(|status| status["unreachable"] == Value::Array(Vec::new()))
    })?;
    lab.down()
}

/// The agent's note in its run directory, and its presentation by `overlayctl status`.
#[test]
fn tools_are_told_what_the_agent_knows() -> Result<()> {
    let lab = lab("tools")?;
    let node = lab.node(1);
    let note: Value = serde_json::from_str(&node.read_file("/run/overlay/agent.json")?)?;
    let command = node.read_file(format!("/proc/{}/comm", note["pid"]))?;
    ensure!(command.trim() == "overlayd", "{note}");
    ensure!(note["device"] == "flannel.1", "{note}");
    ensure!(note["subnet_file"] == "/run/flannel/subnet.env", "{note}");
    let status = status(&node)?;
    ensure!(
        status["agent"] == json!({"running": true, "pid": note["pid"]}),
        "{status}"
    );
    for (told, shown) in [
        ("early_refusal", &status["early_refusal"]),
        ("services", &status["services"]["by"]),
    ] {
        ensure!(
            note[told].is_string() && note[told] == *shown,
            "{told}: {note}, {status}"
        );
    }
    lab.down()
}

/// The program at the VXLAN device's egress runs before captures, so the program is disabled while
/// there is one.
#[test]
fn a_capture_shows_what_the_stack_sends_to_other_nodes() -> Result<()> {
    let lab = lab("capture")?;
    let (node, pod) = (lab.node(1), lab.pod(2, 1));
    let encapsulated = || packets(&node, "vtep_out", "encapsulated_for_stack");
    let exchange = || traffic::tcp(&reach::of_node(&node), &(&pod).into(), 10_000);

    let capture = RawSocket::open(&node.namespace(), "flannel.1")?;
    wait_noted(&node, "somebody captures on the VXLAN device", true)?;
    let before = encapsulated()?;
    capture.drain(QUIET)?;
    exchange()?;
    let seen = capture.drain(QUIET)?;
    let sent = seen.iter().filter(|frame| frame.outgoing).count();
    ensure!(sent >= 3, "{sent} of the node's packets were captured");
    let meanwhile = encapsulated()? - before;
    ensure!(meanwhile == 0, "{meanwhile} packets went past the capture");

    drop(capture);
    wait_noted(&node, "somebody captures", false)?;
    exchange()?;
    ensure!(encapsulated()? > before, "the device encapsulates still");
    lab.down()
}

/// What arrives for the stack is handed in at the VXLAN device: captures there show all of it,
/// although the device itself opens only super-packets and what the path check asks.
#[test]
fn a_capture_shows_what_is_handed_in_for_the_stack() -> Result<()> {
    /// Position of the protocol in an IPv4 header behind Ethernet.
    const PROTOCOL: usize = 23;
    /// A frame of the longest packet that fits the device.
    const FRAME: usize = 1450 + ETHERNET_LEN as usize;
    let lab = lab("handed")?;
    let (node, pod) = (lab.node(1), lab.pod(2, 1));
    wait_serving(&node)?;
    let opened = || -> Result<u64> {
        let link = node.json(["ip", "-j", "-s", "link", "show", "dev", "flannel.1"])?;
        let packets = &link[0]["stats64"]["rx"]["packets"];
        packets.as_u64().context("no count of received packets")
    };
    let capture = RawSocket::open(&node.namespace(), "flannel.1")?;
    let before = opened()?;
    traffic::tcp(&reach::of_node(&node), &(&pod).into(), 10_000)?;
    let seen = capture.drain(QUIET)?;
    let is_handed_in = |frame: &[u8]| frame.get(PROTOCOL) == Some(&TCP) && frame.len() <= FRAME;
    let frames = seen.iter().filter(|frame| !frame.outgoing);
    let (handed_in, others): (Vec<_>, Vec<_>) = frames.partition(|it| is_handed_in(&it.bytes));
    let (handed_in, others) = (handed_in.len(), others.len() as u64);
    ensure!(
        handed_in >= 3,
        "{handed_in} of the pod's packets were captured"
    );
    let opened = opened()? - before;
    ensure!(
        opened <= others,
        "the device opened {opened} packets, and {others} were its own: \
         super-packets, and what the path check asks"
    );
    lab.down()
}

/// A packet filter of this node may refuse the requests to one peer. The other peers, whose answers
/// are on their way, must not be reported.
#[test]
fn a_peer_that_cannot_be_asked_is_the_only_one_that_is_told() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 3,
        pods: 0,
        ..Options::for_test("unasked")
    })?;
    let node = lab.node(1);
    let [other, unasked] = [lab.node(2).subnet()?, lab.node(3).subnet()?];
    node.run([
        "nft",
        &format!(
            "table inet firewall {{ chain output {{ type filter hook output priority 0; \
             ip daddr {} icmp type echo-request reject; }}; }}",
            unasked.network()
        ),
    ])?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])?;
    wait_noted(
        &node,
        &format!("no answer over the kernel path from {unasked}"),
        true,
    )?;
    let told = status(&node)?["unreachable"].to_string();
    ensure!(!told.contains(&other.to_string()), "{told}");
    lab.down()
}

#[test]
fn an_agent_that_may_not_ask_its_peers_says_so() -> Result<()> {
    let lab = lab("unchecked")?;
    let node = lab.node(1);
    ensure!(status(&node)?["unchecked"] == Value::Null);
    // Without raw sockets, and no group may open sockets for echo alone (the kernel's default).
    let aside = tempfile::tempdir()?;
    let agent = aside.path().join("overlayd");
    let own = lab.options().bin_dir.join("overlayd");
    let line = format!(
        "exec setpriv --bounding-set=-net_raw {} \"$@\"",
        own.display()
    );
    fs::write(&agent, format!("#!/bin/sh\n{line}\n"))?;
    fs::set_permissions(&agent, Permissions::from_mode(0o755))?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent_from(&agent, &[])?;
    let why = "echo requests are not permitted";
    wait_noted(
        &node,
        &format!("kernel paths to peers: not checked: {why}"),
        true,
    )?;
    wait_until("status to say so", LIMIT, || {
        status(&node).is_ok_and(|status| status["unchecked"].to_string().contains(why))
    })?;
    let shown = node.run(["overlayctl", "status"])?;
    ensure!(
        shown.contains(&format!("kernel paths to peers not checked: {why}")),
        "{shown}"
    );
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])?;
    wait_until("status to be content", LIMIT, || {
        status(&node).is_ok_and(|status| status["unchecked"] == Value::Null)
    })?;
    lab.down()
}

/// An agent of another version may have pinned maps that this build's tools cannot read.
#[test]
fn pins_of_another_abi_version_are_told() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 1,
        pods: 0,
        ..Options::for_test("other-abi")
    })?;
    let node = lab.node(1);
    let pinned = status(&node)?["abi"].clone();
    ensure!(pinned["pinned"] == json!([pinned["own"]]), "{pinned}");
    node.stop_agent(Signal::SIGTERM)?;
    node.run(["sh", "-ec", "cd /sys/fs/bpf/overlay; mv v* v99"])?;
    let output = node.exec(["overlayctl", "status", "--output", "json"])?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(status["abi"]["pinned"] == json!([99]), "{status}");
    let problems = status["problems"].to_string();
    ensure!(problems.contains("ABI version 99"), "{problems}");
    lab.down()
}

#[test]
fn connection_tracking_that_takes_up_no_connection_is_told() -> Result<()> {
    let lab = lab("tcp-loose")?;
    let node = lab.node(1);
    let set = |value: u8| {
        node.run([
            "sysctl",
            "-w",
            &format!("net.netfilter.nf_conntrack_tcp_loose={value}"),
        ])
    };
    ensure!(status(&node)?["tcp_pick_up"] == Value::Null);
    set(0)?;
    wait_noted(&node, "nf_conntrack_tcp_loose is 0", true)?;
    let told = status(&node)?["tcp_pick_up"].to_string();
    ensure!(told.contains("nf_conntrack_tcp_loose is 0"), "{told}");
    set(1)?;
    wait_noted(&node, "nf_conntrack_tcp_loose", false)?;
    lab.down()
}
