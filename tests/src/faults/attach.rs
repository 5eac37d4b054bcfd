//! Programs attached by clsact, for kernels without tcx.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::marked::{self, Marked};
use super::scene::{PINS, REPAIR, Scene, filters, hooks, shell};
use super::{Case, Stage};
use crate::{Node, fast_path, wait_until};

const BASE: Case = Case {
    stage: Stage::Clsact,
    ..Case::USUAL
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "clsact-agent-killed",
        fault: "the agent gets SIGKILL and is started",
        invariant: "filters stay without an agent, and each is replaced in one step",
        run: killed,
        ..BASE
    },
    Case {
        name: "clsact-filters-deleted",
        fault: "every filter is deleted by hand",
        invariant: "the kernel path carries everything until they are back",
        run: |scene| {
            scene.without_programs(
                "for device in $(tc qdisc show | sed -n 's/^qdisc clsact .* dev \\([^ ]*\\) \
                .*/\\1/p'); do
                     tc filter del dev $device ingress && tc filter del dev $device egress || exit
                 done",
            )
        },
        ..BASE
    },
    Case {
        name: "clsact-to-tcx-and-back",
        fault: "the agent is started with --attach=auto, then clsact",
        invariant: "a packet meets each program once",
        run: to_tcx_and_back,
        ..BASE
    },
    Case {
        name: "clsact-off-and-on",
        fault: "the agent is started with --fast-path=off --guard=nftables, then auto",
        invariant: "off leaves no filter",
        run: off_and_on,
        ..BASE
    },
];

fn wait_filters(node: &Node) -> Result<()> {
    wait_until("a filter on every hook", REPAIR, || {
        filters(node).is_ok_and(|filters| filters.len() == hooks(node))
    })
}

fn killed(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    let before = filters(&node)?;
    let marked = Marked::start(scene)?;
    node.stop_agent(Signal::SIGKILL)?;
    ensure!(
        filters(&node)? == before,
        "filters changed without an agent"
    );
    node.start_agent(&[])?;
    wait_filters(&node)?;
    let after = filters(&node)?;
    ensure!(
        after.iter().all(|filter| !before.contains(filter)),
        "{before:?} became {after:?}"
    );
    marked.ensure_met_once()
}

fn to_tcx_and_back(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--attach=auto"])?;
    scene.wait_recovered()?;
    if fast_path::has_tcx(&node)? {
        ensure!(filters(&node)?.is_empty(), "{:?} are left", filters(&node)?);
    }
    marked::ensure_met_once(scene)?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])?;
    wait_filters(&node)?;
    let links = shell(&node, &format!("ls {PINS}/links"))?;
    ensure!(links.is_empty(), "{links} are left");
    marked::ensure_met_once(scene)
}

fn off_and_on(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--fast-path=off", "--guard=nftables"])?;
    ensure!(filters(&node)?.is_empty(), "{:?} are left", filters(&node)?);
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])
}
