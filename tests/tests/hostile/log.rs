//! `overlayd --log-refused`: who it is, where the agent is asked, and silence where it is not.

use std::fs;
use std::thread::sleep;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::hostile::{Flood, Kind, Pace, Scene};
use overlay_tests::{Lab, wait_until};

use crate::{PATIENCE, RATE, STREAM, lab};

/// The lines about refused packets in the log of the first node's agent.
fn lines(lab: &Lab) -> Result<Vec<String>> {
    let log = lab.node(1).agent_log();
    let text = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    let lines = text
        .lines()
        .filter(|line| line.contains("refused a packet"));
    Ok(lines.map(str::to_owned).collect())
}

fn flood(lab: &Lab, kind: Kind) -> Result<()> {
    let pace = Pace {
        rate: Some(RATE),
        core: None,
    };
    let flood = Flood::start(lab, &Scene::of(lab)?, kind, pace)?;
    sleep(STREAM);
    flood.finish().map(drop)
}

#[test]
fn refused_packets_are_told_where_that_is_wanted() -> Result<()> {
    let lab = lab("refused-log", "auto", &["--xdp=off"])?;
    flood(&lab, Kind::Stranger)?;
    let unasked = lines(&lab)?;
    ensure!(unasked.is_empty(), "unasked: {unasked:?}");

    let node = lab.node(1);
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--log-refused"])?;
    for (kind, words) in [
        (
            Kind::Stranger,
            [
                "hook=\"net_in\"",
                "reason=\"unknown_vtep\"",
                "interface=\"eth0\"",
            ],
        ),
        (
            Kind::PodSource,
            [
                "hook=\"pod_in\"",
                "reason=\"spoofed_source\"",
                "interface=\"veth",
            ],
        ),
    ] {
        flood(&lab, kind)?;
        wait_until("a line about it", PATIENCE, || {
            lines(&lab).is_ok_and(|lines| {
                lines
                    .iter()
                    .any(|line| words.iter().all(|word| line.contains(word)))
            })
        })
        .with_context(|| format!("{}: {:?}", kind.name(), lines(&lab)))?;
    }
    let told = lines(&lab)?.len();
    ensure!(told < 100, "{told} lines about two floods");
    Ok(())
}
