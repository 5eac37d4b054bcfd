//! Waits for actions of controllers and kubelets.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Cluster, control_plane};

const REGISTERED: Duration = Duration::from_secs(60);
/// Longest wait for a pod that needs no other pod.
const POD: Duration = Duration::from_secs(60);
/// Longest wait for the network of all nodes.
const NODES: Duration = Duration::from_secs(180);
/// Longest watch of each object by one kubectl.
const WATCH: &str = "--timeout=10s";

impl Cluster {
    /// Waits until `count` nodes have registered and have a range of addresses.
    pub(super) fn wait_registered(&self, count: usize) -> Result<()> {
        self.wait_until("the nodes to register", REGISTERED, || {
            self.json(["get", "nodes"]).is_ok_and(|nodes| {
                let nodes = nodes["items"].as_array().map_or(&[][..], Vec::as_slice);
                let with_range = nodes
                    .iter()
                    .filter(|node| node["spec"]["podCIDR"].is_string());
                with_range.count() == count
            })
        })
    }

    /// Looks until `look` answers true, at most for `limit`, and only while the control plane runs.
    ///
    /// # Errors
    /// Names `what` when the time is over, and a program of the control plane that has ended.
    pub fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        look: impl FnMut() -> bool,
    ) -> Result<()> {
        control_plane::wait_while_up(&self.directory(), what, limit, look)
    }

    /// Waits until every node is Ready.
    ///
    /// # Errors
    /// When that takes too long; the output of `kubectl describe` is part of the error.
    pub fn wait_nodes_ready(&self) -> Result<()> {
        let nodes = self.nodes();
        let nodes: Vec<_> = nodes
            .iter()
            .map(|it| format!("node/{}", it.name()))
            .collect();
        self.wait_ready("all nodes", NODES, &nodes)
            .with_context(|| {
                let nodes = self.kubectl(["describe", "nodes"]).unwrap_or_default();
                let pods = self.kubectl(["describe", "pods", "--all-namespaces"]);
                format!("{nodes}\n{}", pods.unwrap_or_default())
            })
    }

    /// Waits until a pod is Ready.
    ///
    /// # Errors
    /// When that takes too long; see [`Cluster::last_words`].
    pub fn wait_pod_ready(&self, name: &str) -> Result<()> {
        self.wait_ready(&format!("pod {name}"), POD, &[format!("pod/{name}")])
            .with_context(|| self.last_words(name))
    }

    /// Lets kubectl watch objects. kubectl ends at once where an object is missing or the API
    /// server does not answer, and is then started again.
    fn wait_ready(&self, what: &str, limit: Duration, objects: &[String]) -> Result<()> {
        self.wait_until(&format!("{what} to be Ready"), limit, || {
            let words = ["wait", "--for=condition=Ready", WATCH];
            let objects = objects.iter().map(String::as_str);
            self.kubectl(words.into_iter().chain(objects)).is_ok()
        })
    }
}
