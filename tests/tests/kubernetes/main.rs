//! A real Kubernetes: API server, kubelets, containers, kube-proxy, and the overlay by its manifest
//! and image.

mod churn;
mod leftovers;
mod reach;
mod upkeep;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::Options;
use overlay_tests::kubernetes::{Cluster, Node};
use overlay_tests::traffic::{self, Answers, Endpoint};

/// How long the cluster may take to follow a change.
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

/// The node's lease is the range of addresses that Kubernetes has given it: FLANNEL_SUBNET is its
/// first address.
fn leases_its_range(cluster: &Cluster, node: &Node) -> Result<()> {
    let object = cluster.json(["get", "node", &node.name()])?;
    let range = object["spec"]["podCIDR"].as_str().context("no podCIDR")?;
    let gateway = range.replace(".0/24", ".1/24");
    let file = node.run(["cat", "/run/flannel/subnet.env"])?;
    let line = format!("FLANNEL_SUBNET={gateway}");
    ensure!(file.lines().any(|found| found == line), "{range}: {file}");
    Ok(())
}
