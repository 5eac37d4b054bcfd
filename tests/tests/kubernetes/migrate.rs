//! A cluster of flannel's changes its image and nothing else, and changes it back; another cluster
//! changes to the overlay node by node.

use anyhow::{Context as _, Result, ensure};
use overlay_tests::kubernetes::{Cluster, Node};
use overlay_tests::pace::Traffic;
use overlay_tests::traffic::Endpoint;
use overlay_tests::{Options, wait_until};
use serde_json::json;

use crate::{PATIENCE, flannel, is_accelerated, leases_its_range, talk};

/// flannel's own manifest. Its images are not available here, so their actions are done by hand.
const MANIFEST: &str = include_str!("flannel.yml");
/// The agent's message without that privilege.
const MISSING: &str = "fast path: down: probing packet programs: this process lacks CAP_BPF and \
                       CAP_PERFMON (a container: give it these, and the host's /sys/fs/bpf)";

#[test]
fn a_cluster_of_flannels_changes_its_image_and_back() -> Result<()> {
    let cluster = Cluster::up(Options::for_test("k8s-swap"))?;
    cluster.apply(MANIFEST)?;
    flannel::install(&cluster)?;
    cluster.wait_nodes_ready()?;
    let nodes = cluster.nodes();
    let one = cluster.run_pod("one", 1, &json!([]))?;
    let other = cluster.run_pod("other", 2, &json!([]))?;
    let short = cluster.run_pod("short", 1, &json!([]))?;
    talk(&one, &other).context("as flannel has it")?;
    let devices = devices(&nodes)?;
    let traffic = Traffic::start(&one, &other)?;

    // Only the images change: the kernel path works, with a message about the missing privilege.
    cluster.follow_block("By the images alone", 0, &[])?;
    for node in &nodes {
        leases_its_range(&cluster, node)?;
        let said = node.readyz(8081)?;
        ensure!(said.lines().any(|line| line == MISSING), "{said}");
    }
    talk(&one, &other).context("by the kernel path")?;
    let mine = cluster.run_pod("mine", 1, &json!([]))?;
    talk(&mine, &other).context("a pod of our plugin's and one of flannel's")?;
    cluster.delete_pod("short")?;
    is_gone(&nodes[0], &short)?;

    // One command gives the agent the missing privilege.
    cluster.follow_block("By the images alone", 1, &[])?;
    for (node, pod) in [(&nodes[0], &one), (&nodes[0], &mine), (&nodes[1], &other)] {
        wait_accelerated(&cluster, node, pod)?;
    }

    cluster.follow("All at once")?;
    let rest = [
        "delete",
        "--ignore-not-found",
        "--timeout=120s",
        "--filename=-",
    ];
    cluster.kubectl_with(rest, MANIFEST)?;
    for (node, pod) in [(&nodes[0], &one), (&nodes[0], &mine), (&nodes[1], &other)] {
        wait_accelerated(&cluster, node, pod)?;
    }
    talk(&one, &other).context("with the overlay's manifest")?;
    talk(&mine, &other)?;
    ensure!(self::devices(&nodes)? == devices, "another VXLAN device");

    // Then the cluster changes back.
    cluster.follow("Back")?;
    flannel::install(&cluster)?;
    let late = cluster.run_pod("late", 2, &json!([]))?;
    talk(&one, &late).context("a pod that flannel made after it was back")?;
    talk(&mine, &late)?;
    cluster.delete_pod("mine")?;
    is_gone(&nodes[0], &mine)?;
    let outcome = traffic.finish()?;
    println!("from flannel to the overlay and back: {outcome}");
    ensure!(outcome.lost() == 0, "{outcome}");
    cluster.down()
}

#[test]
fn a_cluster_of_flannels_is_migrated_node_by_node() -> Result<()> {
    let cluster = Cluster::up(Options::for_test("k8s-by-node"))?;
    cluster.apply(MANIFEST)?;
    flannel::install(&cluster)?;
    cluster.wait_nodes_ready()?;
    let nodes = cluster.nodes();
    let one = cluster.run_pod("one", 1, &json!([]))?;
    let other = cluster.run_pod("other", 2, &json!([]))?;
    let devices = devices(&nodes)?;
    let traffic = Traffic::start(&one, &other)?;
    cluster.follow_block("Node by node", 0, &[])?;
    for (number, old, flannels) in [(2, &other, true), (1, &one, false)] {
        let node = &nodes[number - 1];
        cluster.follow_block("Node by node", 1, &[("NODE", &node.name())])?;
        wait_accelerated(&cluster, node, old)?;
        cluster.wait_overlay_ready()?;
        leases_its_range(&cluster, node)?;
        // Existing pods, and new ones of both plugins, at first on a mixed cluster.
        let mine = cluster.run_pod(&format!("mine{number}"), number, &json!([]))?;
        wait_accelerated(&cluster, node, &mine)?;
        talk(&one, &other).with_context(|| format!("once {} is the overlay's", node.name()))?;
        talk(&mine, &one)?;
        talk(&mine, &other)?;
        if flannels {
            let agents = nodes[0].exec(["pgrep", "-x", "overlayd"])?;
            ensure!(!agents.status.success(), "n1 is not flannel's any more");
            let late = cluster.run_pod("late", 1, &json!([]))?;
            talk(&late, &mine).context("a pod that flannel made meanwhile")?;
        }
    }
    let outcome = traffic.finish()?;
    println!("from flannel to the overlay, node by node: {outcome}");
    ensure!(outcome.lost() == 0, "{outcome}");
    ensure!(self::devices(&nodes)? == devices, "another VXLAN device");
    cluster.down()
}

/// Index and MAC address of each node's VXLAN device.
fn devices(nodes: &[Node]) -> Result<Vec<String>> {
    let show = [
        "cat",
        "/sys/class/net/flannel.1/ifindex",
        "/sys/class/net/flannel.1/address",
    ];
    nodes.iter().map(|node| node.run(show)).collect()
}

fn wait_accelerated(cluster: &Cluster, node: &Node, pod: &Endpoint) -> Result<()> {
    wait_until(
        &format!("pod {} to be accelerated", pod.name),
        PATIENCE,
        || is_accelerated(cluster, node, pod).is_ok_and(|it| it),
    )
    .with_context(|| node.last_words())
}

/// Waits until nothing of a deleted pod is left on its node.
fn is_gone(node: &Node, pod: &Endpoint) -> Result<()> {
    let address = pod.address.to_string();
    let files = node.run(["ls", "/var/lib/cni/networks/cbr0"])?;
    ensure!(
        files.lines().all(|file| file != address),
        "the address of {} is not free: {files}",
        pod.name
    );
    let held = files.lines().filter(|file| file.starts_with("10.")).count();
    let ports = node.run(["ls", "/sys/class/net/cni0/brif"])?;
    ensure!(
        ports.lines().count() == held,
        "{} left a port: {ports}, addresses: {files}",
        pod.name
    );
    Ok(())
}
