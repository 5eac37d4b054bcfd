//! `overlayd --log-refused`: lines with the sender where the flag is set, and none where it is not.

use std::fs;
use std::thread::sleep;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::hostile::{Flood, Kind, Pace, Scene};
use overlay_tests::{Lab, wait_until};

use crate::{PATIENCE, RATE, STREAM, lab, refused};

/// The lines about refused packets in the log of the first node's agent.
fn lines(lab: &Lab) -> Result<Vec<String>> {
    let log = lab.node(1).agent_log();
    let text = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    let lines = text
        .lines()
        .filter(|line| line.contains("refused a packet"));
    Ok(lines.map(str::to_owned).collect())
}

fn start(lab: &Lab, kind: Kind) -> Result<Flood> {
    let pace = Pace {
        rate: Some(RATE),
        core: None,
    };
    Flood::start(lab, &Scene::of(lab)?, kind, pace)
}

/// Waits for a line with all of these words.
fn wait_for_line(lab: &Lab, words: &[&str]) -> Result<()> {
    wait_until(&format!("a line with {words:?}"), PATIENCE, || {
        lines(lab).is_ok_and(|lines| {
            let has_all = |line: &String| words.iter().all(|word| line.contains(word));
            lines.iter().any(has_all)
        })
    })
    .with_context(|| format!("{:?}", lines(lab)))
}

#[test]
fn refused_packets_are_told_where_that_is_wanted() -> Result<()> {
    let lab = lab("refused-log", "auto", &["--xdp=off"])?;
    let unwanted = start(&lab, Kind::Stranger)?;
    sleep(STREAM);
    unwanted.finish()?;
    let unasked = lines(&lab)?;
    ensure!(unasked.is_empty(), "unasked: {unasked:?}");

    let node = lab.node(1);
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--log-refused"])?;
    let before = refused(&node)?;
    let from_outside = start(&lab, Kind::Stranger)?;
    wait_for_line(
        &lab,
        &[
            "hook=\"net_in\"",
            "reason=\"unknown_vtep\"",
            "interface=\"eth0\"",
        ],
    )?;
    // Both are in the same second: the sender from outside has had its line, and does not use up
    // the pod's.
    let from_a_pod = start(&lab, Kind::PodSource)?;
    sleep(STREAM);
    from_a_pod.finish()?;
    from_outside.finish()?;
    wait_for_line(
        &lab,
        &[
            "hook=\"pod_in\"",
            "reason=\"spoofed_source\"",
            "interface=\"veth",
        ],
    )?;
    let (told, refused) = (lines(&lab)?.len(), refused(&node)? - before);
    ensure!(
        told as u64 * 10 < refused,
        "{told} lines about {refused} packets"
    );
    Ok(())
}
