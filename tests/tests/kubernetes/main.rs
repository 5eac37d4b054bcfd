//! A real Kubernetes: API server, kubelets, containers, kube-proxy, and the overlay by its manifest
//! and image.

mod churn;
mod flannel;
mod golden;
mod leftovers;
mod manifest;
mod migrate;
mod names;
mod reach;
mod upkeep;
mod upstream;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::Options;
use overlay_tests::kubernetes::{Cluster, Node};
use overlay_tests::traffic::{self, Answers, Endpoint};
use serde_json::Value;

/// Longest time until the cluster has followed a change.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a message: several segments, or one datagram.
const LONG: usize = 20_000;
const SHORT: usize = 1000;

/// A cluster of two nodes that is ready for pods.
fn cluster(name: &str) -> Result<Cluster> {
    let cluster = Cluster::up(Options::for_test(name))?;
    cluster.apply_overlay()?;
    cluster.wait_nodes_ready()?;
    cluster.wait_overlay_ready()?;
    for node in cluster.nodes() {
        leases_its_range(&cluster, &node)?;
    }
    Ok(cluster)
}

/// TCP, UDP and ICMP both ways, with the addresses of the pods themselves.
fn talk(one: &Endpoint, other: &Endpoint) -> Result<()> {
    for (from, to) in [(one, other), (other, one)] {
        let seen = [
            traffic::tcp(from, to, LONG)?,
            traffic::udp(from, to, SHORT, Answers::Once)?,
            traffic::icmp(from, to, SHORT)?,
        ];
        ensure!(
            seen.iter().all(|seen| *seen == from.address),
            "{} is seen as {seen:?} by {}",
            from.name,
            to.name
        );
    }
    Ok(())
}

/// Whether the fast path carries the pod's packets to other pods.
fn is_accelerated(cluster: &Cluster, node: &Node, pod: &Endpoint) -> Result<bool> {
    let overlayctl = cluster.lab().options().bin_dir.join("overlayctl");
    let overlayctl = overlayctl.to_string_lossy();
    let status = node.run([&*overlayctl, "status", "--output=json"])?;
    let status: Value = serde_json::from_str(&status)?;
    let address = pod.address.to_string();
    let pods = status["pods"].as_array().context("no pods")?;
    let known = pods.iter().find(|it| it["address"] == address.as_str());
    Ok(known.is_some_and(|it| it["path"] == "fast"))
}

/// The node's lease is the range of addresses that Kubernetes has assigned to the node:
/// FLANNEL_SUBNET is its first address.
fn leases_its_range(cluster: &Cluster, node: &Node) -> Result<()> {
    let object = cluster.json(["get", "node", &node.name()])?;
    let range = object["spec"]["podCIDR"].as_str().context("no podCIDR")?;
    let gateway = range.replace(".0/24", ".1/24");
    let file = node.run(["cat", "/run/flannel/subnet.env"])?;
    let line = format!("FLANNEL_SUBNET={gateway}");
    ensure!(file.lines().any(|found| found == line), "{range}: {file}");
    Ok(())
}
