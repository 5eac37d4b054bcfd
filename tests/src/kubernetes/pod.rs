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

/// How long a kubelet may take to take a pod away, which may have missed the end of its container.
const DELETED: &str = "--timeout=150s";
/// How long a kubelet may take to make a pod that it finds in a file.
const STATIC_POD: Duration = Duration::from_secs(90);

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
    /// When kubectl fails; what `kubectl describe` says, and the last words of the nodes, are part
    /// of the error.
    pub fn delete_pod(&self, name: &str) -> Result<()> {
        self.kubectl(["delete", "pod", name, "--grace-period=1", DELETED])
            .map(drop)
            .with_context(|| self.last_words(name))
    }

    /// What there is to say about a pod that is not as it should be.
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
    /// Makes a pod by the kubelet alone, which finds it in a file: no API server is needed. Returns
    /// it when it has an address.
    ///
    /// # Errors
    /// When that takes too long; the kubelet's last words are part of the error.
    pub fn run_static_pod(&self, name: &str) -> Result<Endpoint> {
        let mut manifest = pod(name, self.number(), &json!([]));
        // The API server would add a token that only it can give.
        manifest["spec"]["automountServiceAccountToken"] = json!(false);
        // The kubelet must not see half of a file.
        let (draft, path) = (self.static_pods().join(".draft"), self.static_pod(name));
        fs::write(&draft, manifest.to_string())
            .with_context(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("rename to {}", path.display()))?;
        // A kubelet adds its node's name.
        let full = format!("{name}-{}", self.name());
        wait_for(&format!("the static pod {full}"), STATIC_POD, || {
            self.local_endpoint(&full).ok()
        })
        .with_context(|| {
            let cause = self.local_endpoint(&full).err();
            format!("{cause:?}\n{}", self.last_words())
        })
    }

    /// Takes a pod of [`Node::run_static_pod`] away.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_static_pod(&self, name: &str) -> Result<()> {
        let path = self.static_pod(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Where sockets of a pod of this node are opened, and its address, as containerd and the
    /// kernel know it.
    ///
    /// # Errors
    /// When it has no address, or does not run.
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
        // A container's process is in its node's namespace first.
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
