//! Many pods, and an API server that does not answer.

use anyhow::{Context as _, Result, ensure};
use ipnet::Ipv4Net;
use overlay_tests::kubernetes::Node;
use overlay_tests::pace::Traffic;
use overlay_tests::traffic::Endpoint;
use overlay_tests::wait_until;
use serde_json::json;

use crate::leftovers::wait_clean;
use crate::{PATIENCE, cluster, is_accelerated, talk};

/// Number of pods, and number of pods at a time.
const PODS: usize = 100;
const AT_A_TIME: usize = 10;
/// The agent's `--healthz-port` in our manifest.
const READYZ: u16 = 8471;

#[test]
fn a_hundred_pods_leave_nothing() -> Result<()> {
    let cluster = cluster("k8s-churn")?;
    let node = cluster.node(1);
    node.time_calls("flannel")?;
    cluster.churn(1, PODS, AT_A_TIME)?;
    for verb in ["ADD", "DEL"] {
        let times = node.call_times(verb)?;
        println!("{verb}, {AT_A_TIME} at a time: {times:?}");
        ensure!(times.count >= PODS, "{verb}: {times:?}");
    }
    wait_clean(&node)?;
    cluster.down()
}

#[test]
fn the_api_server_is_away() -> Result<()> {
    let cluster = cluster("k8s-away")?;
    let one = cluster.run_pod("one", 1, &json!([]))?;
    let other = cluster.run_pod("other", 2, &json!([]))?;
    let traffic = Traffic::start(&one, &other)?;
    let nodes = cluster.nodes();
    cluster.stop_api_server()?;
    // The kubelets restart the agents by themselves.
    for node in &nodes {
        let before = agent(node)?;
        node.run(["kill", "-9", &before])?;
        wait_until("another agent", PATIENCE, || {
            agent(node).is_ok_and(|agent| agent != before)
        })?;
        wait_until("the agent to be ready", PATIENCE, || {
            node.readyz(READYZ).is_ok()
        })
        .with_context(|| node.last_words())?;
        let said = node.readyz(READYZ)?;
        ensure!(said.contains("leases: as known at"), "{said}");
    }
    talk(&one, &other).context("while the API server is away")?;
    // The kubelets create pods by themselves.
    let made: Vec<_> = nodes
        .iter()
        .map(|node| node.run_static_pod("meanwhile"))
        .collect::<Result<_>>()?;
    for (node, pod) in nodes.iter().zip(&made) {
        is_of_subnet(node, pod)?;
        wait_until("the pod to be accelerated", PATIENCE, || {
            is_accelerated(&cluster, node, pod).is_ok_and(|it| it)
        })
        .with_context(|| node.last_words())?;
    }
    talk(&made[0], &made[1]).context("two pods that were made meanwhile")?;
    talk(&made[0], &other).context("a pod that was made meanwhile, and one from before")?;
    cluster.start_api_server()?;
    cluster.wait_nodes_ready()?;
    let outcome = traffic.finish()?;
    println!("API server away, agents killed: {outcome}");
    ensure!(outcome.lost() == 0, "{outcome}");
    for node in &nodes {
        wait_until("the leases to be those of the API server", PATIENCE, || {
            node.readyz(READYZ)
                .is_ok_and(|said| said.contains("leases: known"))
        })?;
        node.remove_static_pod("meanwhile")?;
    }
    let new = cluster.run_pod("new", 1, &json!([]))?;
    talk(&new, &other).context("a pod that was made afterwards")?;
    cluster.down()
}

/// Checks that the pod's address is in the node's lease.
fn is_of_subnet(node: &Node, pod: &Endpoint) -> Result<()> {
    let file = node.run(["cat", "/run/flannel/subnet.env"])?;
    let gateway = file
        .lines()
        .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))
        .context("no FLANNEL_SUBNET")?;
    let subnet: Ipv4Net = gateway.parse()?;
    ensure!(subnet.contains(&pod.address), "{}: {file}", pod.address);
    Ok(())
}

/// The process of a node's agent, by its id on the node.
fn agent(node: &Node) -> Result<String> {
    Ok(node.run(["pgrep", "-x", "overlayd"])?.trim().to_owned())
}
