//! Changes in the life of a cluster: agents, pods and nodes that are added and removed.

use anyhow::{Context as _, Result, ensure};
use overlay_tests::kubernetes::{Cluster, NEXT_FILE, Node, pod};
use overlay_tests::pace::Traffic;
use overlay_tests::{Options, wait_until};
use serde_json::json;

use crate::leftovers::{traces, wait_clean};
use crate::{PATIENCE, cluster, leases_its_range, talk};

/// The subnets of the agents' leases.
fn subnets(cluster: &Cluster) -> Result<Vec<String>> {
    let subnet = |node: &Node| {
        let file = node.run(["cat", "/run/flannel/subnet.env"])?;
        let line = file
            .lines()
            .find(|line| line.starts_with("FLANNEL_SUBNET="));
        line.map(str::to_owned).context("no FLANNEL_SUBNET")
    };
    cluster.nodes().iter().map(subnet).collect()
}

#[test]
fn agents_and_pods_are_made_anew() -> Result<()> {
    let cluster = cluster("k8s-anew")?;
    let one = cluster.run_pod("one", 1, &json!([]))?;
    let other = cluster.run_pod("other", 2, &json!([]))?;
    talk(&one, &other).context("before")?;

    let before = subnets(&cluster)?;
    let traffic = Traffic::start(&one, &other)?;
    cluster.restart_overlay()?;
    let outcome = traffic.finish()?;
    println!("rolling restart: {outcome}");
    ensure!(outcome.lost() == 0, "rolling restart: {outcome}");
    ensure!(subnets(&cluster)? == before, "the leases have changed");

    cluster.delete_pod("one")?;
    let one = cluster.run_pod("one", 1, &json!([]))?;
    talk(&one, &other).context("after a pod was made anew")?;

    for name in ["one", "other"] {
        cluster.delete_pod(name)?;
    }
    a_pod_says_why_it_does_not_come_up(&cluster)?;
    for node in cluster.nodes() {
        wait_clean(&node)?;
    }
    cluster.down()
}

/// `kubectl describe` shows cause and cure of a failed ADD.
fn a_pod_says_why_it_does_not_come_up(cluster: &Cluster) -> Result<()> {
    let node = cluster.node(2);
    let lease = "/run/flannel/subnet.env";
    node.run(["pkill", "-STOP", "-x", "overlayd"])?;
    node.run(["mv", lease, "/run/flannel/away"])?;
    cluster.apply(&pod("early", 2, &json!([])).to_string())?;
    let told = || cluster.kubectl(["describe", "pod", "early"]);
    let cure = "check that overlayd runs and reaches its store";
    wait_until("cause and cure in the pod's events", PATIENCE, || {
        told()
            .is_ok_and(|told| told.contains(&format!("cannot read {lease}")) && told.contains(cure))
    })
    .with_context(|| format!("{:?}", told()))?;
    node.run(["mv", "/run/flannel/away", lease])?;
    node.run(["pkill", "-CONT", "-x", "overlayd"])?;
    cluster.delete_pod("early")
}

/// docs/kubernetes.md from its first command to its last.
#[test]
fn the_page_installs_upgrades_and_uninstalls() -> Result<()> {
    let cluster = Cluster::up(Options::for_test("k8s-page"))?;
    cluster.follow("Install")?;
    cluster.wait_nodes_ready()?;
    for node in cluster.nodes() {
        leases_its_range(&cluster, &node)?;
    }
    let one = cluster.run_pod("one", 1, &json!([]))?;
    let other = cluster.run_pod("other", 2, &json!([]))?;
    talk(&one, &other)?;

    cluster.import_next()?;
    let (before, traffic) = (subnets(&cluster)?, Traffic::start(&one, &other)?);
    cluster.follow("Upgrade")?;
    let outcome = traffic.finish()?;
    println!("upgrade: {outcome}");
    ensure!(outcome.lost() == 0, "upgrade: {outcome}");
    ensure!(subnets(&cluster)? == before, "the leases have changed");
    for node in cluster.nodes() {
        cluster.exec_overlay(&node, ["cat", &format!("/{NEXT_FILE}")])?;
    }
    talk(&one, &other).context("after the upgrade")?;

    for name in ["one", "other"] {
        cluster.delete_pod(name)?;
    }
    for node in cluster.nodes() {
        ensure!(traces(&node)?.len() > 5, "{:?}", traces(&node)?);
    }
    cluster.follow("Uninstall")?;
    for node in cluster.nodes() {
        let left = traces(&node)?;
        ensure!(left.is_empty(), "{}: {left:?}", node.name());
        let object = cluster.json(["get", "node", &node.name()])?;
        let text = object["metadata"]["annotations"].to_string();
        ensure!(!text.contains("flannel"), "{text}");
    }
    a_wait_ends_with_the_control_plane(&cluster)?;
    cluster.down()
}

/// A wait for a program of the control plane ends with an error when that program has ended.
fn a_wait_ends_with_the_control_plane(cluster: &Cluster) -> Result<()> {
    cluster.end_of_control_plane("kube-scheduler")?;
    let waited = cluster.kubectl(["get", "pods", "--watch"]);
    let said = format!(
        "{:#}",
        waited.err().context("a watch that ended by itself")?
    );
    for word in ["kube-scheduler has ended", "lab down"] {
        ensure!(said.contains(word), "{said}");
    }
    Ok(())
}

#[test]
fn a_node_reboots_and_comes_back_after_its_deletion() -> Result<()> {
    let cluster = cluster("k8s-boot")?;
    let one = cluster.run_pod("one", 1, &json!([]))?;
    cluster.run_pod("other", 2, &json!([]))?;
    let node = cluster.node(2);
    node.reboot()?;
    cluster.wait_nodes_ready()?;
    cluster.wait_overlay_ready()?;
    // The kubelet restarts the pod's container, in a new sandbox.
    let talks = || {
        let other = cluster.endpoint("other")?;
        talk(&one, &other)
    };
    wait_until("the pod to be back", PATIENCE, || talks().is_ok())
        .with_context(|| format!("{:?}", talks().err()))?;
    cluster.delete_pod("other")?;

    // A kubelet registers its node when it starts.
    cluster.kubectl(["delete", "node", &node.name()])?;
    node.reboot()?;
    cluster.wait_nodes_ready()?;
    cluster.wait_overlay_ready()?;
    // The new Node may have another range than the old one.
    let same = || leases_its_range(&cluster, &node);
    wait_until("the lease to follow the new Node", PATIENCE, || {
        same().is_ok()
    })
    .with_context(|| format!("{:?}", same().err()))?;
    let new = cluster.run_pod("new", 2, &json!([]))?;
    talk(&one, &new).context("after the Node was deleted and added again")?;
    for name in ["one", "new"] {
        cluster.delete_pod(name)?;
    }
    for node in cluster.nodes() {
        wait_clean(&node)?;
    }
    cluster.down()
}
