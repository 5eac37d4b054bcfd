//! Programs attached by clsact, for kernels without tcx.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

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
            let script = "for device in $(ls /sys/class/net); do
                              tc filter del dev $device ingress; tc filter del dev $device egress
                          done; true";
            shell(&scene.node(), script).map(drop)
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
        fault: "the agent is started with --fast-path=off, then auto",
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
    Ok(())
}

fn to_tcx_and_back(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--attach=auto"])?;
    scene.wait_recovered()?;
    if fast_path::has_tcx(&node)? {
        ensure!(filters(&node)?.is_empty(), "{:?} are left", filters(&node)?);
    }
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])?;
    wait_filters(&node)?;
    let links = shell(&node, &format!("ls {PINS}/links"))?;
    ensure!(links.is_empty(), "{links} are left");
    Ok(())
}

fn off_and_on(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--fast-path=off"])?;
    ensure!(filters(&node)?.is_empty(), "{:?} are left", filters(&node)?);
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])
}
