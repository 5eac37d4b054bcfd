//! Pods of tests.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Cluster, Node, PROBE_IMAGE};
use crate::Namespace;
use crate::traffic::Endpoint;
use crate::wait::wait_for;

/// Longest deletion of a pod by a kubelet, which may have missed the end of the pod's container.
const DELETED: &str = "--timeout=150s";
/// Longest creation of a static pod by a kubelet.
const STATIC_POD: Duration = Duration::from_secs(90);

impl Cluster {
    /// Creates a pod on node `number` that does nothing, and waits until the pod is Ready. `ports`
    /// are the ports that its container declares, as `hostPort` needs them.
    ///
    /// # Errors
    /// When the pod does not become Ready; the output of `kubectl describe` is part of the error.
    pub fn run_pod(&self, name: &str, number: usize, ports: &Value) -> Result<Endpoint> {
        self.apply(&pod(name, number, ports).to_string())?;
        self.wait_pod_ready(name)?;
        self.endpoint(name)
    }

    /// The namespace in which sockets of a pod are opened, and the pod's address.
    ///
    /// # Errors
    /// When the pod has no address, or does not run.
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

    /// Deletes a pod at once, and waits until it no longer exists.
    ///
    /// # Errors
    /// When kubectl fails; the output of `kubectl describe`, and the last log lines of the nodes,
    /// are part of the error.
    pub fn delete_pod(&self, name: &str) -> Result<()> {
        self.kubectl(["delete", "pod", name, "--grace-period=1", DELETED])
            .map(drop)
            .with_context(|| self.last_words(name))
    }

    /// A report on a pod that is not in the expected state.
    pub fn last_words(&self, name: &str) -> String {
        let told = self.kubectl(["describe", "pod", name]);
        let nodes = self.nodes();
        let words = nodes.iter().map(Node::last_words);
        format!(
            "{}\n{}",
            told.unwrap_or_default(),
            words.collect::<Vec<_>>().join("\n")
        )
    }
}

impl Node<'_> {
    /// Creates a pod by the kubelet alone, which reads a file: no API server is needed. Returns the
    /// pod when it has an address.
    ///
    /// # Errors
    /// When that takes too long; the kubelet's last log lines are part of the error.
    pub fn run_static_pod(&self, name: &str) -> Result<Endpoint> {
        let mut manifest = pod(name, self.number(), &json!([]));
        // The API server would add a token that no other server can issue.
        manifest["spec"]["automountServiceAccountToken"] = json!(false);
        // The kubelet must not read half of a file.
        let (draft, path) = (self.static_pods().join(".draft"), self.static_pod(name));
        fs::write(&draft, manifest.to_string())
            .with_context(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("rename to {}", path.display()))?;
        // A kubelet appends its node's name.
        let full = format!("{name}-{}", self.name());
        wait_for(&format!("the static pod {full}"), STATIC_POD, || {
            self.local_endpoint(&full).ok()
        })
        .with_context(|| {
            let cause = self.local_endpoint(&full).err();
            format!("{cause:?}\n{}", self.last_words())
        })
    }

    /// Removes a pod of [`Node::run_static_pod`].
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_static_pod(&self, name: &str) -> Result<()> {
        let path = self.static_pod(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// The namespace in which sockets of a pod of this node are opened, and the pod's address, as
    /// read from containerd and the kernel.
    ///
    /// # Errors
    /// When the pod has no address, or does not run.
    pub fn local_endpoint(&self, name: &str) -> Result<Endpoint> {
        let filter = format!("labels.\"io.kubernetes.pod.name\"=={name}");
        let list = ["ctr", "--namespace=k8s.io", "containers", "list", "--quiet"];
        let found = self.run(list.into_iter().chain([filter.as_str()]))?;
        let pid = found
            .lines()
            .find_map(process_in_group)
            .with_context(|| format!("pod {name} does not run: {found:?}"))?;
        let namespace = Namespace::of_process(name, pid);
        let show = ["ip", "-4", "-json", "address", "show", "eth0"];
        let shown: Value = serde_json::from_str(&namespace.run(show)?)?;
        let address = shown[0]["addr_info"][0]["local"].as_str();
        // At first a container's process is in its node's namespace.
        let address = address
            .and_then(|text| text.parse().ok())
            .filter(|address| *address != self.below().underlay_address());
        Ok(Endpoint {
            name: name.to_owned(),
            namespace,
            address: address.with_context(|| format!("pod {name} has no address: {shown}"))?,
        })
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
