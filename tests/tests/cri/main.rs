//! What a kubelet has of a container runtime that asks plugins whether pods can be added:
//! containerd 2, by CRI.

mod containerd;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::status::wait_for_path;
use overlay_tests::{Lab, Node, Options, StoreKind, wait_until};

use containerd::Containerd;

/// The file that a lease is announced in, and its name while there is none.
const LEASE: &str = "/run/flannel/subnet.env";
const AWAY: &str = "/run/flannel/away";
/// Longest time until the agent notices that a pod was removed.
const NOTICED: Duration = Duration::from_secs(10);

#[test]
fn a_kubelet_hears_of_pods_and_of_what_is_missing() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 1,
        pods: 0,
        store: StoreKind::Dir,
        ..Options::for_test("cri")
    })?;
    let node = lab.node(1);
    let mut containerd = Containerd::start(&node)?;
    ensure!(containerd.network_complaint()?.is_none());
    let (first, address) = containerd.run_sandbox("first")?;
    wait_for_path(&node, &address, "fast")?;

    node.stop_agent(Signal::SIGKILL)?;
    node.run(["mv", LEASE, AWAY])?;
    let complaint = containerd.network_complaint()?.context("all is well")?;
    for words in [
        format!("cannot read {LEASE}"),
        "check that overlayd runs and reaches its store".to_owned(),
    ] {
        ensure!(complaint.contains(&words), "no {words:?} in: {complaint}");
    }
    node.run(["mv", AWAY, LEASE])?;
    node.start_agent(&[])?;
    ensure!(containerd.network_complaint()?.is_none());

    let (second, other) = containerd.run_sandbox("second")?;
    ensure!(other != address, "two pods have {other}");
    wait_for_path(&node, &other, "fast")?;
    // Each has a port, an address and a namespace.
    ensure!(leftovers(&node)?.len() == 6, "{:?}", leftovers(&node));
    for sandbox in [first, second] {
        containerd.remove_sandbox(&sandbox)?;
    }
    wait_until("the node to be clean", NOTICED, || {
        leftovers(&node).is_ok_and(|left| left.is_empty())
    })
    .with_context(|| format!("{:?}", leftovers(&node)))
}

/// What pods have left: ports of the bridge, addresses, and network namespaces, as containerd names
/// them.
fn leftovers(node: &Node) -> Result<Vec<String>> {
    let look = "ls /sys/class/net/cni0/brif
                ls /var/lib/cni/networks/cbr0 | grep '^[0-9]' || true
                ls /run/netns | grep '^cni-' || true";
    let found = node.run(["sh", "-ec", look])?;
    Ok(found.lines().map(str::to_owned).collect())
}
