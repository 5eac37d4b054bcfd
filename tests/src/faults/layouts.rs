//! Builds of the agent with different layouts of their maps replace each other.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Case;
use super::marked;
use super::scene::{PINS, REPAIR, Scene, ensure_logged, filters, hooks, program_ids, shell};
use crate::{Node, wait_until};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "maps-of-an-older-layout",
        fault: "the agent starts over maps whose values are shorter",
        invariant: "all maps are made anew, and the log says why",
        run: |scene| over_maps(scene, [("ov_pods4", 8), ("ov_peers4", 40)]),
        ..Case::USUAL
    },
    Case {
        name: "maps-of-a-newer-layout",
        fault: "the agent starts over maps whose values are longer",
        invariant: "all maps are made anew, and the log says why",
        run: |scene| over_maps(scene, [("ov_pods4", 64), ("ov_peers4", 256)]),
        ..Case::USUAL
    },
    Case {
        name: "pins-of-another-version",
        fault: "the agent starts beside programs that an agent of another ABI version has left \
            attached",
        invariant: "a packet meets each program once: the others are detached, their pins removed",
        run: over_another_version,
        ..Case::USUAL
    },
    Case {
        name: "upgrade-and-downgrade",
        fault: "the agent is replaced by another build (--other-build, else a copy), and back",
        invariant: "whichever starts last has its programs on every hook",
        run: there_and_back,
        ..Case::USUAL
    },
];

fn over_maps(scene: &Scene<'_>, values: [(&str, usize); 2]) -> Result<()> {
    let node = scene.node();
    node.stop_agent(Signal::SIGTERM)?;
    let before = map_ids(&node)?;
    for (map, value) in values {
        let pin = format!("{PINS}/maps/{map}");
        shell(
            &node,
            &format!(
                "rm {pin} && bpftool map create {pin} type hash key 4 value {value} entries 16 \
                name {map}"
            ),
        )?;
    }
    node.start_agent(&[])?;
    for (map, value) in values {
        let why = format!("pinned map {map} is a hash, key 4 B, value {value} B");
        ensure_logged(&node, &why)?;
    }
    let after = map_ids(&node)?;
    ensure!(
        after.keys().eq(before.keys()) && after.iter().all(|(map, id)| before[map] != *id),
        "not all maps are new: {before:?} became {after:?}"
    );
    Ok(())
}

/// The kernel's ids of the pinned maps, by name.
fn map_ids(node: &Node) -> Result<BTreeMap<String, u64>> {
    let names = shell(node, &format!("ls {PINS}/maps"))?;
    names
        .lines()
        .map(|name| {
            let pin = format!("{PINS}/maps/{name}");
            let map = node.json(["bpftool", "-j", "map", "show", "pinned", &pin])?;
            let id = map["id"]
                .as_u64()
                .with_context(|| format!("no id: {map}"))?;
            Ok((name.to_owned(), id))
        })
        .collect()
}

fn over_another_version(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    node.stop_agent(Signal::SIGTERM)?;
    let before = program_ids(&node)?;
    // The pins of an agent of version 99.
    let other = "/sys/fs/bpf/overlay/v99";
    shell(&node, &format!("mv {PINS} {other}"))?;
    node.start_agent(&[])?;
    wait_new_programs(&node, &before, program_ids)?;
    ensure!(
        shell(&node, &format!("ls {other}")).is_err(),
        "{other} is left"
    );
    marked::ensure_met_once(scene)
}

fn there_and_back(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    let own = scene.lab.options().bin_dir.join("overlayd");
    let other = scene.settings.other_build.as_ref().unwrap_or(&own);
    for build in [other, &own, other, &own] {
        let before = attached_ids(&node)?;
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent_from(build, &[])?;
        node.wait_ready(REPAIR)?;
        wait_new_programs(&node, &before, attached_ids)?;
    }
    Ok(())
}

/// The kernel's ids of the programs on a node's hooks, whatever version of the ABI has attached
/// them, because `overlayctl` knows only its own.
fn attached_ids(node: &Node) -> Result<Vec<u64>> {
    let links = shell(
        node,
        "for link in /sys/fs/bpf/overlay/v*/links/*; do
             [ -e $link ] || continue
             bpftool -j link show pinned $link; echo
         done",
    )?;
    let mut ids = Vec::new();
    for link in links.lines().filter(|line| !line.is_empty()) {
        let link: Value = serde_json::from_str(link).context("what bpftool says of a link")?;
        ids.extend(link["prog_id"].as_u64());
    }
    for filter in filters(node)? {
        let id = filter.rsplit(' ').next().context("no id of a filter")?;
        ids.push(id.parse()?);
    }
    Ok(ids)
}

/// Waits until every hook has one program of ours, and none of those that were `before`.
fn wait_new_programs(
    node: &Node,
    before: &[u64],
    ids: impl Fn(&Node) -> Result<Vec<u64>>,
) -> Result<()> {
    wait_until("other programs on every hook", REPAIR, || {
        ids(node).is_ok_and(|after| {
            after.len() == hooks(node) && after.iter().all(|id| !before.contains(id))
        })
    })
}
