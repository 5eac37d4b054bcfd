//! The overlay's own manifest, as deployed.

use std::ffi::OsStr;

use anyhow::{Context as _, Result};

use super::{Cluster, Node, images};

const MANIFEST: &str = include_str!("../../../deploy/kube-overlay.yml");
const UNINSTALL: &str = include_str!("../../../deploy/uninstall.yml");
const FLANNEL_FAST_PATH: &str = include_str!("../../../deploy/flannel-fast-path.yml");
const FLANNEL_ELSEWHERE: &str = include_str!("../../../deploy/flannel-elsewhere.yml");
/// The namespace of the manifest, as a flag.
const NAMESPACE: &str = "--namespace=kube-overlay";
const DAEMON_SET: &str = "daemonset/kube-overlay-ds";
/// The last of the agent's flags, and one that names the node's own control group (`node.sh`).
const LAST_FLAG: &str = "--healthz-port=8471";
const OWN_SOCKETS: &str = "--services-cgroup=/sys/fs/cgroup/unified";
/// Longest duration of a rollout: the nodes follow each other, and an agent is not Ready before its
/// first probe.
const ROLLOUT: &str = "--timeout=180s";

/// The manifest for nodes that share a machine, because a node does not own all of the machine's
/// sockets (docs/services.md, "Limits").
fn of_a_shared_machine() -> String {
    MANIFEST.replace(LAST_FLAG, &format!("{LAST_FLAG}, {OWN_SOCKETS}"))
}

/// The files below `deploy/` that docs/kubernetes.md names, by name.
pub(super) fn files() -> [(&'static str, String); 4] {
    [
        ("kube-overlay.yml", of_a_shared_machine()),
        ("uninstall.yml", UNINSTALL.to_owned()),
        ("flannel-fast-path.yml", FLANNEL_FAST_PATH.to_owned()),
        ("flannel-elsewhere.yml", FLANNEL_ELSEWHERE.to_owned()),
    ]
}

impl Cluster {
    /// Applies the overlay's manifest.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply_overlay(&self) -> Result<()> {
        self.apply(&of_a_shared_machine())
    }

    /// Waits until an agent of the DaemonSet's latest revision is Ready on every node.
    ///
    /// # Errors
    /// When that takes too long; the output of `kubectl describe` is part of the error.
    pub fn wait_overlay_ready(&self) -> Result<()> {
        self.kubectl(["rollout", "status", NAMESPACE, DAEMON_SET, ROLLOUT])
            .map(drop)
            .with_context(|| {
                let told = self.kubectl(["describe", NAMESPACE, "pods"]);
                let logs = self.kubectl(["logs", NAMESPACE, DAEMON_SET, "--tail=20"]);
                format!("{}\n{}", told.unwrap_or_default(), logs.unwrap_or_default())
            })
    }

    /// Restarts every agent, one node at a time as in the manifest, and waits for the end.
    ///
    /// # Errors
    /// When the rollout does not end.
    pub fn restart_overlay(&self) -> Result<()> {
        self.kubectl(["rollout", "restart", NAMESPACE, DAEMON_SET])?;
        self.wait_overlay_ready()
    }

    /// Gives every node an image to upgrade to, `overlay:v2`, with a file of its own
    /// ([`NEXT_FILE`](super::NEXT_FILE)).
    ///
    /// # Errors
    /// When the image cannot be made, or containerd refuses it.
    pub fn import_next(&self) -> Result<()> {
        let bin_dir = self.lab().options().bin_dir;
        let archive = images::write_next(&self.directory(), &bin_dir)?;
        self.nodes()
            .iter()
            .try_for_each(|node| node.import(&archive))
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
