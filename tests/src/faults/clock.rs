//! Clocks jump. The machine's own clock does not change: the programs are shown another one.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::scene::{REPAIR, Scene, text};
use super::store::{AFTER, Nodes};
use super::{Case, Stage};
use crate::command;

/// The time for which each time of day holds: longer than the agent's interval of full looks.
const LOOK: Duration = Duration::from_secs(6);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "agent-clock-jumps",
        fault: "the agent's wall clock jumps by two days forth and back while it runs \
            (libfaketime)",
        invariant: "it stays ready and keeps its lease and its peers",
        stage: Stage::ShortLease,
        quick: false,
        run: agent_clock,
        ..Case::USUAL
    },
    Case {
        name: "etcd-clock-jumps",
        fault: "etcd is restarted with its monotonic clock a month ahead, then as it was (time \
            namespace)",
        invariant: "no lease ends",
        stage: Stage::ShortLease,
        quick: false,
        run: etcd_clock,
        ..Case::USUAL
    },
    Case {
        name: "directory-clock-jumps",
        fault: "every lease in the directory looks two days old: the nodes' clock has jumped ahead",
        invariant: "no node changes its subnet, and none drops its peers",
        stage: Stage::Directory,
        run: directory_clock,
        ..Case::USUAL
    },
];

fn agent_clock(scene: &Scene<'_>) -> Result<()> {
    let (node, nodes) = (scene.node(), Nodes::of(scene)?);
    let set = |offset: &str| scene.put("clock", offset.as_bytes());
    let clock = set("+0")?;
    // The loader knows the directories of libraries for this machine's architecture.
    let agent = scene.wrapper(
        "overlayd-by-another-clock",
        &format!(
            "export FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 DONT_FAKE_MONOTONIC=1 \
            NO_FAKE_STAT=1
             LD_PRELOAD='/usr/$LIB/faketime/libfaketime.so.1' exec",
            text(&clock)
        ),
    )?;
    node.stop_agent(Signal::SIGTERM)?;
    let process = node.start_agent_from(&agent, &[])?.process;
    node.wait_ready(REPAIR)?;
    let maps =
        fs::read_to_string(format!("/proc/{}/maps", process.pid)).context("its libraries")?;
    ensure!(
        maps.contains("libfaketime"),
        "libfaketime is not loaded: install faketime with `cargo xtask setup`"
    );
    for offset in ["+2d", "-2d", "+0"] {
        set(offset)?;
        scene
            .holds_for(LOOK, || nodes.ensure_kept())
            .and_then(|()| node.wait_ready(REPAIR))
            .with_context(|| format!("with the clock {offset}"))?;
    }
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])
}

fn etcd_clock(scene: &Scene<'_>) -> Result<()> {
    let nodes = Nodes::of(scene)?;
    const MONTH: &str = "2592000";
    let ahead = [
        "unshare",
        "--time",
        "--monotonic",
        MONTH,
        "--boottime",
        MONTH,
    ];
    for through in [&ahead[..], &[]] {
        scene.lab.stop_store()?;
        scene.lab.start_store_through(through)?;
        scene.holds_for(AFTER, || nodes.ensure_kept())?;
        nodes.ensure_kept_after(scene)?;
    }
    Ok(())
}

fn directory_clock(scene: &Scene<'_>) -> Result<()> {
    let nodes = Nodes::of(scene)?;
    let directory = text(&scene.lab.directory().join("store/subnets"));
    command::run(
        "sh",
        [
            "-c",
            &format!("touch --date='2 days ago' {directory}/*.json"),
        ],
    )?;
    scene.holds_for(LOOK, || nodes.ensure_kept())
}
