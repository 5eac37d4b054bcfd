//! The overlay's own manifest, as it is deployed.

use std::ffi::OsStr;

use anyhow::{Context as _, Result};

use super::{Cluster, Node};

const MANIFEST: &str = include_str!("../../../deploy/kube-overlay.yml");
const UNINSTALL: &str = include_str!("../../../deploy/uninstall.yml");
const UNINSTALL_DAEMON_SET: &str = "daemonset/kube-overlay-uninstall";
/// What the manifest calls its namespace and its DaemonSet.
const NAMESPACE: &str = "--namespace=kube-overlay";
const DAEMON_SET: &str = "daemonset/kube-overlay-ds";
/// The last of the agent's flags, and one that names the node's own control group (`node.sh`).
const LAST_FLAG: &str = "--healthz-port=8471";
const OWN_SOCKETS: &str = "--services-cgroup=/sys/fs/cgroup/unified";
/// A line of its pods' specification, and of no other's.
const SPEC: &str = "      hostNetwork: true\n";
/// How long a rollout may take: a node after the other, and an agent is not Ready before its probe
/// asks it.
const ROLLOUT: &str = "--timeout=180s";

/// The manifest for nodes that share a machine: its sockets are not all one node's
/// (docs/services.md, "Limits").
fn of_a_shared_machine() -> String {
    MANIFEST.replace(LAST_FLAG, &format!("{LAST_FLAG}, {OWN_SOCKETS}"))
}

impl Cluster {
    /// Applies the overlay's manifest.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply_overlay(&self) -> Result<()> {
        self.apply(&of_a_shared_machine())
    }

    /// The same for the nodes with a label only, `KEY: VALUE`, as docs/kubernetes.md says.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply_overlay_where(&self, label: &str) -> Result<()> {
        let selector = format!("{SPEC}      nodeSelector: {{ {label} }}\n");
        self.apply(&of_a_shared_machine().replace(SPEC, &selector))
    }

    /// Waits until an agent of the DaemonSet's latest revision is Ready on every node.
    ///
    /// # Errors
    /// When that takes too long; what `kubectl describe` says is part of the error.
    pub fn wait_overlay_ready(&self) -> Result<()> {
        self.kubectl(["rollout", "status", NAMESPACE, DAEMON_SET, ROLLOUT])
            .map(drop)
            .with_context(|| {
                let told = self.kubectl(["describe", NAMESPACE, "pods"]);
                let logs = self.kubectl(["logs", NAMESPACE, DAEMON_SET, "--tail=20"]);
                format!("{}\n{}", told.unwrap_or_default(), logs.unwrap_or_default())
            })
    }

    /// Starts every agent anew, one node at a time as the manifest has it, and waits for the end.
    ///
    /// # Errors
    /// When it does not come to its end.
    pub fn restart_overlay(&self) -> Result<()> {
        self.kubectl(["rollout", "restart", NAMESPACE, DAEMON_SET])?;
        self.wait_overlay_ready()
    }

    /// Deletes all that the overlay's manifest made.
    ///
    /// # Errors
    /// When that does not come to its end.
    pub fn delete_overlay(&self) -> Result<()> {
        self.delete(MANIFEST)
    }

    fn delete(&self, manifest: &str) -> Result<()> {
        let words = ["delete", "--ignore-not-found", ROLLOUT, "--filename=-"];
        self.kubectl_with(words, manifest).map(drop)
    }

    /// Uninstalls the overlay, as docs/kubernetes.md says; the pods that it served are gone
    /// already.
    ///
    /// # Errors
    /// When a step fails.
    pub fn uninstall_overlay(&self) -> Result<()> {
        self.kubectl(["delete", NAMESPACE, DAEMON_SET, ROLLOUT])?;
        self.kubectl([
            "wait",
            NAMESPACE,
            "--for=delete",
            "pods",
            "--selector=app=overlay",
            ROLLOUT,
        ])?;
        self.apply(UNINSTALL)?;
        self.kubectl([
            "rollout",
            "status",
            NAMESPACE,
            UNINSTALL_DAEMON_SET,
            ROLLOUT,
        ])
        .with_context(|| {
            let told = self.kubectl(["describe", NAMESPACE, "pods"]);
            let logs = self.kubectl(["logs", NAMESPACE, UNINSTALL_DAEMON_SET, "--all-containers"]);
            format!("{}\n{}", told.unwrap_or_default(), logs.unwrap_or_default())
        })?;
        for manifest in [UNINSTALL, MANIFEST] {
            self.delete(manifest)?;
        }
        let annotations = [
            "backend-data",
            "backend-type",
            "kube-subnet-manager",
            "public-ip",
        ];
        let annotations = annotations.map(|name| format!("flannel.alpha.coreos.com/{name}-"));
        let line = ["annotate", "nodes", "--all"].map(ToOwned::to_owned);
        self.kubectl(line.into_iter().chain(annotations)).map(drop)
    }

    /// Runs a program in the DaemonSet's container on a node.
    ///
    /// # Errors
    /// When there is no such container, or the program fails.
    pub fn exec_overlay<S: AsRef<OsStr>>(
        &self,
        node: &Node,
        line: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let on_node = format!("--field-selector=spec.nodeName={}", node.name());
        let pods = self.json(["get", NAMESPACE, "pods", &on_node])?;
        let name = pods["items"][0]["metadata"]["name"]
            .as_str()
            .with_context(|| format!("no agent on {}", node.name()))?;
        let words = ["exec", NAMESPACE, name, "--"].map(ToOwned::to_owned);
        let line = line.into_iter().map(|word| word.as_ref().to_owned());
        self.kubectl(words.into_iter().map(Into::into).chain(line))
    }
}
