//! The contents of readiness, health and metrics.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::traffic;
use overlay_tests::{Node, Options, wait_until};

use crate::{RECONNECT, SOON, dump, endpoint, lab, shell};

#[test]
fn health_tells_the_truth() -> Result<()> {
    let lab = lab(Options {
        pods: 1,
        ..Options::for_test("health")
    })?;
    let node = lab.node(1);
    let status = |path: &str| node.http_get(path).map(|answer| answer.status);
    ensure!(status("/livez")? == 200 && status("/readyz")? == 200 && status("/nothing")? == 404);

    let metrics = node.http_get("/metrics")?;
    ensure!(metrics.status == 200);
    ensure!(
        metrics.body.ends_with("# EOF\n"),
        "not OpenMetrics:\n{}",
        metrics.body
    );
    let samples = samples(&metrics.body)?;
    for (name, value) in [
        ("overlay_ready", 1.0),
        ("overlay_peers", 1.0),
        ("overlay_pods", 1.0),
    ] {
        let found = samples.iter().find(|(sample, _)| sample == name);
        ensure!(
            found.is_some_and(|(_, found)| *found == value),
            "{name}: {found:?}\n{}",
            metrics.body
        );
    }
    let encapsulated = |node: &Node| -> Result<f64> {
        let text = node.http_get("/metrics")?.body;
        Ok(self::samples(&text)?
            .iter()
            .filter(|(name, _)| {
                name.starts_with("overlay_")
                    && name.contains("packets_total")
                    && name.contains("encapsulated")
            })
            .map(|(_, value)| value)
            .sum())
    };
    let before = encapsulated(&node)?;
    traffic::udp(
        &endpoint(&lab.pod(1, 1)),
        &endpoint(&lab.pod(2, 1)),
        100,
        traffic::Answers::Once,
    )?;
    ensure!(
        encapsulated(&node)? > before,
        "an encapsulated packet is not counted:\n{}",
        node.http_get("/metrics")?.body
    );

    // A foreign route replaces a peer's, so that the kernel path is not complete.
    let subnet = lab.node(2).subnet()?;
    let agent = node.agent().context("an agent")?;
    agent.signal(Signal::SIGSTOP)?;
    let taken = shell(
        &node,
        &format!(
            "ip route del {subnet} proto 111; ip route add {subnet} via 192.168.66.253 proto static"
        ),
    );
    agent.signal(Signal::SIGCONT)?;
    taken?;
    wait_until("the agent not to be ready", SOON, || {
        status("/readyz").is_ok_and(|status| status == 503)
    })
    .with_context(|| node.agent_log_tail())?;
    ensure!(status("/livez")? == 200);
    wait_until("the peer to leave the fast path", SOON, || {
        dump(&node, "ov_peers4").is_ok_and(|peers| peers.is_empty())
    })?;
    let theirs = shell(&node, &format!("ip route show {subnet}"))?;
    ensure!(
        theirs.contains("proto static"),
        "somebody else's route was taken away: {theirs}"
    );
    shell(&node, &format!("ip route del {subnet} proto static"))?;
    node.wait_ready(SOON)?;
    ensure!(
        dump(&node, "ov_peers4")?.len() == 1,
        "ready without the fast path's entry"
    );

    // Without a store and a lease the agent is alive, but not ready.
    node.stop_agent(Signal::SIGTERM)?;
    lab.stop_store()?;
    node.start_agent_unready(&[])?;
    wait_until("the agent to be alive", SOON, || {
        status("/livez").is_ok_and(|status| status == 200)
    })?;
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        ensure!(status("/readyz")? == 503, "ready without a lease");
        sleep(Duration::from_millis(100));
    }
    lab.start_store()?;
    node.wait_ready(RECONNECT)?;
    lab.down()
}

/// The samples of a text in the OpenMetrics format, in which every line must be a sample or a
/// comment.
fn samples(text: &str) -> Result<Vec<(String, f64)>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line
                .rsplit_once(' ')
                .with_context(|| format!("not a sample: {line:?}"))?;
            let value = value
                .parse()
                .with_context(|| format!("not a number: {line:?}"))?;
            Ok((name.to_owned(), value))
        })
        .collect()
}
