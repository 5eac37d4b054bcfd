//! Many pods, and an API server that is away.

use anyhow::{Context as _, Result, ensure};
use overlay_tests::kubernetes::{Node, pod};
use overlay_tests::pace::Traffic;
use overlay_tests::wait_until;
use serde_json::json;

use crate::leftovers::wait_clean;
use crate::{PATIENCE, cluster, talk};

/// How many pods come and go, and how many at a time.
const PODS: usize = 100;
const AT_A_TIME: usize = 10;

#[test]
fn a_hundred_pods_leave_nothing() -> Result<()> {
    let cluster = cluster("k8s-churn")?;
    for first in (0..PODS).step_by(AT_A_TIME) {
        let batch = format!("from{first}");
        let pods: Vec<_> = (first..first + AT_A_TIME)
            .map(|number| {
                let mut pod = pod(&format!("pod{number}"), 1, &json!([]));
                pod["metadata"]["labels"]["batch"] = json!(batch);
                pod
            })
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
        cluster.apply(&list.to_string())?;
        let these = format!("--selector=batch={batch}");
        cluster.kubectl([
            "wait",
            "--for=condition=Ready",
            "pods",
            &these,
            "--timeout=90s",
        ])?;
        let pods = cluster.json(["get", "pods", &these])?;
        let pods = pods["items"].as_array().context("a list")?;
        let mut addresses: Vec<_> = pods
            .iter()
            .filter_map(|pod| pod["status"]["podIP"].as_str())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        ensure!(addresses.len() == AT_A_TIME, "addresses: {addresses:?}");
        // The next ones are made while these go.
        cluster.kubectl(["delete", "pods", &these, "--grace-period=1", "--wait=false"])?;
    }
    cluster.kubectl(["wait", "--for=delete", "pods", "--all", "--timeout=120s"])?;
    wait_clean(&cluster.node(1))?;
    cluster.down()
}

#[test]
fn the_api_server_is_away() -> Result<()> {
    let cluster = cluster("k8s-away")?;
    let one = cluster.run_pod("one", 1, &json!([]))?;
    let other = cluster.run_pod("other", 2, &json!([]))?;
    let traffic = Traffic::start(&one, &other)?;
    cluster.stop_api_server()?;
    // The kubelets start the agents again by themselves.
    for node in cluster.nodes() {
        let before = agent(&node)?;
        node.run(["kill", "-9", &before])?;
        wait_until("another agent", PATIENCE, || {
            agent(&node).is_ok_and(|agent| agent != before)
        })?;
        let ready = [
            "wget",
            "-q",
            "-O",
            "/dev/null",
            "http://127.0.0.1:8471/readyz",
        ];
        wait_until("the agent to be ready", PATIENCE, || {
            node.run(ready).is_ok()
        })?;
    }
    talk(&one, &other).context("while the API server is away")?;
    cluster.start_api_server()?;
    cluster.wait_nodes_ready()?;
    let outcome = traffic.finish()?;
    println!("API server away, agents killed: {outcome}");
    ensure!(outcome.lost() == 0, "{outcome}");
    let new = cluster.run_pod("new", 1, &json!([]))?;
    talk(&new, &other).context("a pod that was made afterwards")?;
    cluster.down()
}

/// The process of a node's agent, by its number on the node.
fn agent(node: &Node) -> Result<String> {
    Ok(node.run(["pgrep", "-x", "overlayd"])?.trim().to_owned())
}
