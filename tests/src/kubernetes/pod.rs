//! Pods of tests.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Cluster, PROBE_IMAGE};
use crate::Namespace;
use crate::traffic::Endpoint;

impl Cluster {
    /// Makes a pod on node `number` that does nothing, and waits until it is Ready. `ports` is what
    /// its container declares, as `hostPort` needs it.
    ///
    /// # Errors
    /// When it does not become Ready; what `kubectl describe` says is part of the error.
    pub fn run_pod(&self, name: &str, number: usize, ports: &Value) -> Result<Endpoint> {
        self.apply(&pod(name, number, ports).to_string())?;
        self.wait_pod_ready(name)?;
        self.endpoint(name)
    }

    /// Where sockets of a pod are opened, and its address.
    ///
    /// # Errors
    /// When it has no address, or does not run.
    pub fn endpoint(&self, name: &str) -> Result<Endpoint> {
        let pod = self.json(["get", "pod", name])?;
        let status = &pod["status"];
        let address: Ipv4Addr = status["podIP"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .with_context(|| format!("pod {name} has no address: {status}"))?;
        let container = status["containerStatuses"][0]["containerID"]
            .as_str()
            .and_then(|id| id.strip_prefix("containerd://"))
            .with_context(|| format!("pod {name} has no container: {status}"))?;
        let pid = process_in_group(container)
            .with_context(|| format!("no process is in a control group of {container}"))?;
        Ok(Endpoint {
            name: name.to_owned(),
            namespace: Namespace::of_process(name, pid),
            address,
        })
    }

    /// Takes a pod away at once, and waits until it is gone.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn delete_pod(&self, name: &str) -> Result<()> {
        self.kubectl(["delete", "pod", name, "--grace-period=1", "--timeout=60s"])
            .map(drop)
    }
}

/// A pod on a node, labelled with its name.
pub fn pod(name: &str, number: usize, ports: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": format!("n{number}"),
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "probe",
                "image": PROBE_IMAGE,
                "imagePullPolicy": "Never",
                "ports": ports,
            }],
        },
    })
}

/// A process whose control groups are those of a container, in the process namespace of this
/// process.
fn process_in_group(container: &str) -> Option<i32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let groups = fs::read_to_string(entry.path().join("cgroup")).ok()?;
        groups.contains(container).then_some(pid)
    })
}
