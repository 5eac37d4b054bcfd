//! What an agent does first that finds another's data path.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::pins::MAPS;
use overlay_tests::{Lab, Node, Options, wait_until};
use overlay_user::datapath::object;

/// From a start to the first change of the kernel's state.
const FIRST: Duration = Duration::from_secs(30);

/// How many entries a pinned map has.
fn entries(node: &Node, map: &str) -> Result<usize> {
    let pin = format!("{MAPS}/{map}");
    let entries = node.json(["bpftool", "-j", "map", "dump", "pinned", &pin])?;
    Ok(entries.as_array().map_or(0, Vec::len))
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{text}\n"))?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// A peer has left while no agent ran. Its kernel state goes in the first round; by then the pinned
/// maps must not lead there any more, wherever that round may get stuck.
#[test]
fn adopted_maps_never_say_more_than_the_kernel_path_backs() -> Result<()> {
    let lab = Lab::up(Options::for_test("first"))?;
    let (node, gone) = (lab.node(1), lab.node(2));
    ensure!(entries(&node, "ov_peers4")? == 1);
    for node in lab.nodes() {
        node.stop_agent(Signal::SIGKILL)?;
    }
    let key = gone.subnet()?.to_string().replace('/', "-");
    lab.etcdctl(&["del", &format!("/coreos.com/network/subnets/{key}")])?;

    // The round stops at the packet-filter rules, which come after the routes.
    let aside = tempfile::tempdir()?;
    let hold = aside.path().join("hold");
    fs::write(&hold, "")?;
    let iptables = format!(
        "while [ -e {} ]; do sleep 0.05; done\nPATH=${{PATH#*:}} exec iptables \"$@\"",
        hold.display()
    );
    script(&aside.path().join("iptables"), &iptables)?;
    let agent = aside.path().join("agent");
    let overlayd = lab.options().bin_dir.join("overlayd");
    script(
        &agent,
        &format!(
            "PATH={}:$PATH exec {} \"$@\"",
            aside.path().display(),
            overlayd.display()
        ),
    )?;
    node.start_agent_from(&agent, &[])?;
    wait_until("the route to go", FIRST, || {
        node.overlay_routes().is_ok_and(|routes| routes == 0)
    })?;
    let left = (entries(&node, "ov_peers4")?, entries(&node, "ov_vteps4")?);
    let is_held = node.http_get("/readyz")?.status != 200;
    fs::remove_file(&hold)?;
    ensure!(is_held, "the round ended before the look");
    ensure!(
        left == (0, 0),
        "still in the maps: {left:?} peers and VTEPs"
    );
    node.wait_ready(FIRST)?;
    lab.down()
}

/// Programs that are not the agent's own are at work: who asks whether the node is well shall know.
#[test]
fn programs_from_a_file_are_told_of() -> Result<()> {
    let lab = Lab::up(Options::for_test("others"))?;
    let node = lab.node(1);
    let aside = tempfile::tempdir()?;
    let file = aside.path().join("overlay.bpf.o");
    fs::write(&file, object::bytes()?)?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[&format!("--programs={}", file.display())])?;
    let note = format!("those of {} (--programs)", file.display());
    let readiness = node.http_get("/readyz")?.body;
    ensure!(readiness.contains(&note), "{readiness}");
    let status = node.json(["overlayctl", "status", "--output=json"])?;
    ensure!(status["foreign_programs"] == note.as_str(), "{status}");

    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])?;
    let status = node.json(["overlayctl", "status", "--output=json"])?;
    ensure!(status["foreign_programs"].is_null(), "{status}");
    lab.down()
}
