//! An etcd of three members loses one.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::scene::Scene;
use super::store::{AFTER, Nodes, OUTAGE};
use super::{Case, Stage};

const BASE: Case = Case {
    stage: Stage::Cluster,
    quick: false,
    ..Case::USUAL
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "etcd-member-killed",
        fault: "each of three members of etcd in turn gets SIGKILL for longer than the leases",
        invariant: "agents go on with the others: no lease ends, an agent can start",
        run: |scene| {
            each(scene, |scene, number| {
                let member = scene.lab.store_member(number).context("a member")?;
                member.signal(Signal::SIGKILL)?;
                work_without(scene)?;
                scene.lab.start_store()
            })
        },
        ..BASE
    },
    Case {
        name: "etcd-member-frozen",
        fault: "each of three members of etcd in turn gets SIGSTOP for longer than the leases",
        invariant: "agents go on with the others: no lease ends, an agent can start",
        run: |scene| {
            each(scene, |scene, number| {
                let member = scene.lab.store_member(number).context("a member")?;
                member.signal(Signal::SIGSTOP)?;
                let worked = work_without(scene);
                member.signal(Signal::SIGCONT)?;
                worked
            })
        },
        ..BASE
    },
];

fn each(scene: &Scene<'_>, strike: impl Fn(&Scene<'_>, usize) -> Result<()>) -> Result<()> {
    let nodes = Nodes::of(scene)?;
    for number in 1..=scene.lab.options().store_members {
        strike(scene, number).with_context(|| format!("member {number}"))?;
        scene.holds_for(AFTER, || nodes.ensure_kept())?;
        nodes.ensure_kept_after(scene)?;
    }
    Ok(())
}

/// Lets the nodes run for longer than a lease, and restarts an agent in the middle of that time.
fn work_without(scene: &Scene<'_>) -> Result<()> {
    let nodes = Nodes::of(scene)?;
    let half: Duration = OUTAGE / 2;
    scene.holds_for(half, || nodes.ensure_kept())?;
    let node = scene.lab.node(2);
    node.stop_agent(Signal::SIGKILL)?;
    node.start_agent(&[]).context("start an agent meanwhile")?;
    scene.holds_for(half, || nodes.ensure_kept())
}
