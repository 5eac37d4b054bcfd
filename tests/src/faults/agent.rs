//! The agent ends, at any moment, and is started again.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

use super::marked::Marked;
use super::scene::{
    PINS, REPAIR, Scene, ensure_attached, ensure_same, footprint, hooks, in_map, program_ids, shell,
};
use super::{Case, tools};
use crate::status::Counts;
use crate::{Node, interrupt, wait_until};

/// The time for which the agent is missing.
const AWAY: Duration = Duration::from_secs(1);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "agent-killed",
        fault: "the agent gets SIGKILL, pods come and go without it, it is started",
        invariant: "programs stay on their hooks; the plugin and overlayctl work without the agent",
        run: killed,
        ..Case::USUAL
    },
    Case {
        name: "agent-killed-at-random",
        fault: "the agent gets SIGKILL at another point of its start, again and again",
        invariant: "programs stay on their hooks; the node is left as it was, no file or rule more",
        run: killed_at_random,
        ..Case::USUAL
    },
    Case {
        name: "agent-frozen",
        fault: "the agent gets SIGSTOP for longer than the programs trust its next hops",
        invariant: "the kernel finds the next hops instead",
        run: frozen,
        ..Case::USUAL
    },
    Case {
        name: "agent-restarted",
        fault: "the agent gets SIGTERM and is started",
        invariant: "programs stay on their hooks",
        run: restarted,
        ..Case::USUAL
    },
    Case {
        name: "agents-killed-together",
        fault: "every agent gets SIGKILL and is started",
        invariant: "all of them adopt what they find",
        run: killed_together,
        ..Case::USUAL
    },
    Case {
        name: "agent-upgraded",
        fault: "another build of the agent is started in its place",
        invariant: "every hook gets the new build's program and is never empty",
        run: upgraded,
        ..Case::USUAL
    },
    Case {
        name: "fast-path-off-and-on",
        fault: "the agent is started with --fast-path=off --guard=nftables, then auto",
        invariant: "off leaves no program and no pin",
        run: off_and_on,
        ..Case::USUAL
    },
];

fn killed(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    node.stop_agent(Signal::SIGKILL)?;
    sleep(AWAY);
    ensure_attached(&node)?;
    tools::answer(&node)?;
    let pod = scene.lab.add_pod(1)?;
    node.start_agent(&[])?;
    wait_until("the pod to be accelerated", REPAIR, || in_map(&pod))?;
    node.stop_agent(Signal::SIGKILL)?;
    pod.clone().remove()?;
    ensure!(!in_map(&pod), "an entry points at a device that is gone");
    node.start_agent(&[])
}

fn killed_at_random(scene: &Scene<'_>) -> Result<()> {
    /// The golden ratio's fraction: its multiples are spread evenly, and no two are equal.
    const GOLDEN: f64 = 0.618_033_988_749_895;
    let node = scene.node();
    let before = footprint(&node)?;
    node.stop_agent(Signal::SIGKILL)?;
    let start = Instant::now();
    node.start_agent(&[])?;
    // The agent is also stopped shortly after it is ready.
    let span = start.elapsed().mul_f64(1.25);
    let mut place: f64 = 0.0;
    for round in 1..=scene.settings.rounds {
        node.stop_agent(Signal::SIGKILL)?;
        node.start_agent_unready(&[])?;
        place = (place + GOLDEN).fract();
        let delay = span.mul_f64(place);
        sleep(delay);
        interrupt::check()?;
        if round % 10 == 0 {
            node.stop_agent(Signal::SIGKILL)?;
            ensure_attached(&node)
                .with_context(|| format!("round {round}, killed after {delay:?}"))?;
        }
    }
    node.stop_agent(Signal::SIGKILL)?;
    node.start_agent(&[])?;
    scene.wait_recovered()?;
    ensure_same(&before, &footprint(&node)?)
}

fn frozen(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    let agent = node.agent().context("an agent")?;
    agent.signal(Signal::SIGSTOP)?;
    let looked = tools::answer(&node).and_then(|()| over_wrong_next_hops(scene));
    agent.signal(Signal::SIGCONT)?;
    looked
}

/// Waits until the programs no longer trust the agent's next hops, and checks that packets arrive
/// although those next hops are wrong.
fn over_wrong_next_hops(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    wait_until("the programs to trust no next hop", REPAIR, || {
        trusted_until(&node).is_ok_and(|until| until < now())
    })?;
    let pin = format!("{PINS}/maps/ov_peers4");
    let peers = node.json(["bpftool", "-j", "map", "dump", "pinned", &pin])?;
    let bytes = |of: &str| -> Result<Vec<String>> {
        let bytes = peers[0][of].as_array().context("no peer")?;
        let bytes = bytes.iter().filter_map(|byte| byte.as_str());
        Ok(bytes.map(str::to_owned).collect())
    };
    let (key, right) = (bytes("key")?.join(" "), bytes("value")?);
    // The destination is the first field of the outer frame.
    let mut wrong = right.clone();
    wrong[..6].fill("0x02".to_owned());
    let write = |value: &[String]| {
        let value = value.join(" ");
        shell(
            &node,
            &format!("bpftool map update pinned {pin} key {key} value {value}"),
        )
    };
    write(&wrong)?;
    let before = Counts::of(&node)?.encapsulated;
    let talked = scene.talk();
    let carried = Counts::of(&node)?.encapsulated - before;
    write(&right)?;
    talked?;
    ensure!(carried > 0, "the programs encapsulated nothing meanwhile");
    Ok(())
}

/// The time until which the programs trust prepared next hops, in nanoseconds of the monotonic
/// clock.
fn trusted_until(node: &Node) -> Result<u64> {
    let pin = format!("{PINS}/maps/ov_heartbeat");
    let entries = node.json(["bpftool", "map", "dump", "pinned", &pin])?;
    let until = &entries[0]["value"]["next_hops_until_ns"];
    until
        .as_u64()
        .with_context(|| format!("no such time in {entries}"))
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

fn restarted(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    node.stop_agent(Signal::SIGTERM)?;
    ensure_attached(&node)?;
    node.start_agent(&[])
}

fn killed_together(scene: &Scene<'_>) -> Result<()> {
    for node in scene.lab.nodes() {
        node.stop_agent(Signal::SIGKILL)?;
    }
    for node in scene.lab.nodes() {
        node.start_agent(&[])?;
    }
    Ok(())
}

fn upgraded(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    let before = program_ids(&node)?;
    // The kernel gives programs new ids with every load, so to the kernel a copy of the same code
    // is another build.
    let own = scene.lab.options().bin_dir.join("overlayd");
    let build = fs::read(&own).with_context(|| format!("read {}", own.display()))?;
    let other = scene.put("other-overlayd", &build)?;
    let marked = Marked::start(scene)?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent_from(&other, &[])?;
    wait_until("other programs on every hook", REPAIR, || {
        program_ids(&node).is_ok_and(|after| {
            after.len() == hooks(&node) && after.iter().all(|id| !before.contains(id))
        })
    })?;
    marked.ensure_met_once().context("during the upgrade")
}

fn off_and_on(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--fast-path=off", "--guard=nftables"])?;
    shell(&node, "! ls /sys/fs/bpf/overlay").context("pins are left")?;
    ensure!(program_ids(&node)?.is_empty(), "programs are left");
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--fast-path=auto"])
}
