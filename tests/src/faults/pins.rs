//! Pins disappear.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::scene::{PINS, REPAIR, Scene, in_map, program_ids, shell};
use super::{Case, tools};
use crate::{fast_path, wait_until};

/// The time for which the BPF file system is missing.
const AWAY: Duration = Duration::from_secs(3);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "programs-detached",
        fault: "every program is detached by hand",
        invariant: "the kernel path carries everything until they are back",
        run: |scene| scene.without_programs(&fast_path::detach_script(&scene.node())?),
        ..Case::USUAL
    },
    Case {
        name: "agent-killed-and-programs-detached",
        fault: "the agent gets SIGKILL, every program is detached, the agent is started",
        invariant: "the kernel path carries everything meanwhile",
        run: killed_and_detached,
        ..Case::USUAL
    },
    Case {
        name: "link-pins-removed",
        fault: "the pins of the links are removed, and the programs with them",
        invariant: "the kernel path carries everything until they are back",
        run: link_pins_removed,
        ..Case::USUAL
    },
    Case {
        name: "map-pins-removed",
        fault: "the pins of the maps are removed",
        invariant: "plugin and programs see the same maps again",
        run: map_pins_removed,
        ..Case::USUAL
    },
    Case {
        name: "all-pins-removed",
        fault: "everything pinned is removed",
        invariant: "the kernel path carries everything until it is back",
        run: |scene| scene.without_programs("rm -r /sys/fs/bpf/overlay"),
        ..Case::USUAL
    },
    Case {
        name: "bpffs-unmounted",
        fault: "the BPF file system is unmounted, with all that was pinned, and mounted \
            again later",
        invariant: "the kernel path carries everything; agent, plugin and overlayctl say what is \
            missing",
        run: unmounted,
        ..Case::USUAL
    },
];

fn killed_and_detached(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    node.stop_agent(Signal::SIGKILL)?;
    fast_path::detach(&node)?;
    ensure!(program_ids(&node)?.is_empty(), "programs are left");
    scene.talk()?;
    node.start_agent(&[])
}

fn link_pins_removed(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    // Programs that are filters have no links to remove.
    if fast_path::has_tcx(&node)? {
        scene.without_programs(&format!("rm {PINS}/links/*"))
    } else {
        scene.without_programs(&fast_path::detach_script(&node)?)
    }
}

fn map_pins_removed(scene: &Scene<'_>) -> Result<()> {
    shell(&scene.node(), &format!("rm {PINS}/maps/*"))?;
    scene.wait_recovered()?;
    // The plugin uses the pins, so an entry that it removes must be one that the programs see.
    let pod = scene.lab.add_pod(1)?;
    wait_until("a new pod in the pinned map", REPAIR, || in_map(&pod))?;
    pod.remove()
}

fn unmounted(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    shell(&node, "umount /sys/fs/bpf")?;
    let without = || -> Result<()> {
        wait_until("the agent to say so", REPAIR, || {
            node.http_get("/readyz")
                .is_ok_and(|answer| answer.body.contains("/sys/fs/bpf"))
        })?;
        tools::answer(&node)?;
        scene.holds_for(AWAY, || scene.talk())?;
        let pod = scene.lab.add_pod(1).context("a pod while it is away")?;
        pod.remove().context("a pod goes while it is away")
    };
    let result = without();
    shell(&node, "mount -t bpf bpf /sys/fs/bpf")?;
    result
}
