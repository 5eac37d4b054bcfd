//! Waiting for what controllers and kubelets do.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Cluster;
use crate::wait_until;

const REGISTERED: Duration = Duration::from_secs(60);
/// How long a pod may take that needs no other one.
const POD: Duration = Duration::from_secs(60);
/// How long all nodes may take to have their network.
const NODES: Duration = Duration::from_secs(180);

impl Cluster {
    /// Waits until `count` nodes have registered and have got a range of addresses.
    pub(super) fn wait_registered(&self, count: usize) -> Result<()> {
        wait_until("the nodes to register", REGISTERED, || {
            self.json(["get", "nodes"]).is_ok_and(|nodes| {
                let nodes = nodes["items"].as_array().map_or(&[][..], Vec::as_slice);
                let with_range = nodes
                    .iter()
                    .filter(|node| node["spec"]["podCIDR"].is_string());
                with_range.count() == count
            })
        })
    }

    /// Waits until every node is Ready.
    ///
    /// # Errors
    /// When that takes too long; what `kubectl describe` says is part of the error.
    pub fn wait_nodes_ready(&self) -> Result<()> {
        let count = self.lab().options().nodes;
        wait_until("all nodes to be Ready", NODES, || {
            self.json(["get", "nodes"]).is_ok_and(|nodes| {
                let nodes = nodes["items"].as_array().map_or(&[][..], Vec::as_slice);
                nodes.iter().filter(|node| is_ready(node)).count() == count
            })
        })
        .with_context(|| {
            let nodes = self.kubectl(["describe", "nodes"]).unwrap_or_default();
            let pods = self.kubectl(["describe", "pods", "--all-namespaces"]);
            format!("{nodes}\n{}", pods.unwrap_or_default())
        })
    }

    /// Waits until a pod is Ready and returns it.
    ///
    /// # Errors
    /// When that takes too long; see [`Cluster::last_words`].
    pub fn wait_pod_ready(&self, name: &str) -> Result<Value> {
        let pod = || self.json(["get", "pod", name]).ok().filter(is_ready);
        crate::wait::wait_for(&format!("pod {name} to be Ready"), POD, pod)
            .with_context(|| self.last_words(name))
    }
}

/// Whether an object has the condition Ready.
fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|conditions| {
        conditions
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}
