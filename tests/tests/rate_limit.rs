//! A rate limit on a pod's veth is effective, whenever it is set.

use std::io::Write as _;
use std::net::SocketAddrV4;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::conversation::{Conversation, Server, Transport};
use overlay_tests::status::{Counts, wait_accelerated, wait_for_path};
use overlay_tests::{Lab, Options, Pod, StoreKind, command, fast_path, kube_proxy};
use serde_json::json;

/// Bits per second, both ways, and the burst in bits that passes without limit.
const RATE: u64 = 4_000_000;
const BURST: u64 = 400_000;
/// Number of messages of each side in a measurement, and size of each in bytes.
const SPEECHES: u64 = 20;
const SPEECH: u64 = 20_000;

/// The limited directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ways {
    Both,
    /// Packets to the pod.
    ToPod,
}

/// Calls the bandwidth plugin as a runtime does after ours in the list.
fn bandwidth(pod: &Pod, verb: &str, ways: Ways) -> Result<()> {
    let node = pod.node();
    let mut limits = json!({"ingressRate": RATE, "ingressBurst": BURST});
    if ways == Ways::Both {
        limits["egressRate"] = json!(RATE);
        limits["egressBurst"] = json!(BURST);
    }
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "bandwidth",
        "runtimeConfig": {"bandwidth": limits},
        "prevResult": pod.previous_result("1.0.0"),
    });
    let place = node.namespace();
    let mut plugin = place.command("/opt/cni/bin/bandwidth");
    plugin
        .env("CNI_COMMAND", verb)
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_CONTAINERID", pod.container())
        .env("CNI_NETNS", pod.namespace().path())
        .env("CNI_IFNAME", "eth0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = place.start(&mut plugin)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(config.to_string().as_bytes())?;
    }
    let output = child.wait_with_output().context("wait for the plugin")?;
    command::require_success(&format!("bandwidth {verb}"), output)?;
    Ok(())
}

/// Bytes that have passed queueing disciplines of this kind on a node, all devices together.
fn queued(pod: &Pod, kind: &str) -> Result<Vec<u64>> {
    let shown = pod.node().json(["tc", "-s", "-j", "qdisc", "show"])?;
    let qdiscs = shown.as_array().context("a list of qdiscs")?;
    let wanted = qdiscs.iter().filter(|qdisc| qdisc["kind"] == kind);
    Ok(wanted.filter_map(|qdisc| qdisc["bytes"].as_u64()).collect())
}

/// The directions that can be limited once the pod is accelerated. Where programs are filters
/// (before Linux 6.6) their qdisc takes the place of the plugin's qdisc for packets from the pod,
/// as the README says.
fn possible(pod: &Pod) -> Result<Ways> {
    if fast_path::has_tcx(&pod.node())? {
        return Ok(Ways::Both);
    }
    let refused = bandwidth(pod, "ADD", Ways::Both);
    let error = refused.err().context("both ways are limited")?;
    ensure!(format!("{error:#}").contains("qdisc"), "{error:#}");
    take_off(pod, Ways::Both)?;
    Ok(Ways::ToPod)
}

/// Removes the limits.
fn take_off(pod: &Pod, ways: Ways) -> Result<()> {
    let device = pod.host_interface()?;
    bandwidth(pod, "DEL", ways)?;
    // The plugin does not remove limits on the veth, which end with the veth. A clsact qdisc stays,
    // because it is none of these.
    for qdisc in ["root", "ingress"] {
        pod.node()
            .exec(["tc", "qdisc", "del", "dev", &device, qdisc])?;
    }
    Ok(())
}

/// Both sides send in turn; returns the duration.
fn talk(conversation: &Conversation) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..SPEECHES {
        conversation.client_speaks()?;
        conversation.server_speaks()?;
    }
    Ok(start.elapsed())
}

#[test]
fn a_rate_limit_still_limits_when_it_is_set_after_the_pod_was_accelerated() -> Result<()> {
    let lab = Lab::up(Options {
        store: StoreKind::Dir,
        ..Options::for_test("rate")
    })?;
    wait_accelerated(&lab)?;
    // Connections that began on the fast path must not be invalid for connection tracking
    // afterwards.
    for node in lab.nodes() {
        kube_proxy::serve(&node, "10.244.0.0/16".parse()?, &[])?;
    }
    let (limited, neighbour, remote) = (lab.pod(1, 1), lab.pod(1, 2), lab.pod(2, 1));
    let node = limited.node();
    let address = limited.address().to_string();
    let at = SocketAddrV4::new(limited.address(), 7000);
    let server = [Server::open(&limited.namespace(), Transport::Tcp, at)?];
    let open = |from: &Pod| Conversation::open(&from.namespace(), Transport::Tcp, at, &server);
    let conversations = [open(&neighbour)?, open(&remote)?];
    for conversation in &conversations {
        conversation.client_speaks()?;
    }
    let fast = Counts::of(&node)?;
    ensure!(fast.redirected > 0 && fast.decapsulated > 0, "{fast:?}");

    let ways = possible(&limited)?;
    wait_for_path(&node, &address, "fast")?;
    bandwidth(&limited, "ADD", ways)?;
    wait_for_path(&node, &address, "kernel")?;
    for (conversation, who) in conversations.iter().zip(["neighbour", "remote"]) {
        let before = (Counts::of(&node)?, queued(&limited, "tbf")?);
        let took = talk(conversation).context(who)?;
        let counts = &Counts::of(&node)? - &before.0;
        ensure!(counts.slow("pod_kernel_path") > 0, "{who}: {counts:?}");
        ensure!(
            counts.fast() == 0,
            "{who}: short cuts past the limit: {counts:?}"
        );
        // Each direction has one qdisc: towards the pod on its veth, from the pod on a device of
        // the plugin.
        let after = queued(&limited, "tbf")?;
        let limits = if ways == Ways::Both { 2 } else { 1 };
        ensure!(after.len() == limits, "{after:?}");
        for (after, before) in after.iter().zip(&before.1) {
            let passed = after - before;
            ensure!(
                passed >= SPEECHES * SPEECH,
                "{who}: only {passed} bytes passed the limit"
            );
        }
        // Each direction has its own rate; a slow machine only takes longer.
        let least = (SPEECHES * SPEECH * 8 - BURST) as f64 / RATE as f64;
        ensure!(
            took.as_secs_f64() >= least,
            "{who}: {took:?} instead of {least:.2} s"
        );
    }

    // The limit does not affect the neighbours.
    let before = Counts::of(&node)?;
    let to_neighbour = SocketAddrV4::new(neighbour.address(), 7000);
    let other = [Server::open(
        &neighbour.namespace(),
        Transport::Tcp,
        to_neighbour,
    )?];
    talk(&Conversation::open(
        &remote.namespace(),
        Transport::Tcp,
        to_neighbour,
        &other,
    )?)?;
    let counts = &Counts::of(&node)? - &before;
    ensure!(
        counts.encapsulated > 0 && counts.decapsulated > 0,
        "{counts:?}"
    );
    ensure!(counts.slow.is_empty(), "{counts:?}");

    // Without the limit the pod is accelerated again.
    take_off(&limited, ways)?;
    wait_for_path(&node, &address, "fast")?;
    let before = Counts::of(&node)?;
    for conversation in &conversations {
        talk(conversation)?;
    }
    let counts = &Counts::of(&node)? - &before;
    ensure!(
        counts.redirected > 0 && counts.decapsulated > 0,
        "{counts:?}"
    );
    ensure!(counts.slow("pod_kernel_path") == 0, "{counts:?}");
    Ok(())
}
