//! Pods: a namespace each, connected by the real CNI plugin, called like by a container runtime.

use std::ffi::OsStr;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::host;
use super::node::Node;
use super::state::{PodRecord, Shared};
use crate::process::Running;
use crate::{Namespace, command};

/// A pod of the lab. The value is a handle: cheap to clone, valid as long as the pod or the lab
/// exists.
#[derive(Clone)]
pub struct Pod {
    shared: Arc<Shared>,
    record: PodRecord,
}

impl Pod {
    pub(super) fn new(shared: Arc<Shared>, record: PodRecord) -> Self {
        Self { shared, record }
    }

    /// `n1p1`, `n1p2`, …
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// The pod's address on the overlay.
    pub fn address(&self) -> Ipv4Addr {
        self.record.address.addr()
    }

    /// The pod's node.
    pub fn node(&self) -> Node {
        Node::new(Arc::clone(&self.shared), self.record.node - 1)
    }

    /// The pod's network namespace.
    pub fn namespace(&self) -> Namespace {
        let (programs, group) = self.shared.read(|state| {
            let node = state.nodes.get(self.record.node - 1);
            let group = node.and_then(|node| node.group.clone());
            (state.options.bin_dir.clone(), group)
        });
        Namespace::new(&self.record.namespace)
            .in_group(group)
            .with_programs(programs)
    }

    /// The container id that the plugin was given.
    pub fn container(&self) -> &str {
        &self.record.container
    }

    /// The plugin's result of ADD.
    pub fn cni_result(&self) -> &Value {
        &self.record.result
    }

    /// The plugin's result in the form that a runtime passes to a plugin for `version` of CNI.
    pub fn previous_result(&self, version: &str) -> Value {
        let mut result = self.record.result.clone();
        result["cniVersion"] = version.into();
        result
    }

    /// Runs a program in the pod; see [`Namespace::exec`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn exec<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Output> {
        self.namespace().exec(line)
    }

    /// Runs a program in the pod that must succeed; see [`Namespace::run`].
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<String> {
        self.namespace().run(line)
    }

    /// Starts a program in the pod; see [`Namespace::spawn`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Running> {
        self.namespace().spawn(line)
    }

    /// Name of the host's end of the pod's cable, from the plugin's answer.
    ///
    /// # Errors
    /// When the plugin did not name it.
    pub fn host_interface(&self) -> Result<String> {
        let interfaces = self.record.result["interfaces"].as_array();
        let outside = |interface: &&Value| {
            interface["sandbox"].as_str().unwrap_or("").is_empty()
                && interface["name"]
                    .as_str()
                    .is_some_and(|name| name != "cni0")
        };
        let found = interfaces.into_iter().flatten().find(outside);
        let name = found.and_then(|interface| interface["name"].as_str());
        Ok(name
            .context("the plugin's answer names no host interface")?
            .to_owned())
    }

    /// Calls the plugin with DEL and removes the namespace.
    ///
    /// # Errors
    /// When either fails.
    pub fn remove(self) -> Result<()> {
        let path = self.namespace().path();
        let node = self.node();
        let attachment = Some((self.record.container.as_str(), path.as_path()));
        let previous = [("prevResult", self.record.result.clone())];
        let output = node.cni("DEL", attachment, &previous)?;
        command::require_success(&format!("CNI DEL of {}", self.record.name), output)?;
        self.lose()
    }

    /// Removes the namespace without a call of the plugin, as when a runtime crashes or loses its
    /// state.
    ///
    /// # Errors
    /// When the namespace cannot be removed.
    pub fn lose(self) -> Result<()> {
        command::ip(&format!("netns delete {}", self.record.namespace))?;
        self.shared.update(|state| {
            state.pods.retain(|pod| pod.name != self.record.name);
            state
                .namespaces
                .retain(|name| *name != self.record.namespace);
        })
    }
}

/// Makes the next pod of node `number`.
pub(super) fn add(shared: &Arc<Shared>, number: usize) -> Result<Pod> {
    let name = shared.read(|state| {
        let taken = |name: &String| state.pods.iter().any(|pod| pod.name == *name);
        (1..)
            .map(|i| format!("n{number}p{i}"))
            .find(|name| !taken(name))
            .unwrap_or_default()
    });
    let namespace = super::add_namespace(shared, &name)?;
    let node = Node::new(Arc::clone(shared), number - 1);
    let container = format!("lab-{namespace}");
    let path = Namespace::new(&namespace).path();
    let output = node.cni("ADD", Some((&container, &path)), &[])?;
    let output = command::require_success(&format!("CNI ADD of {name}"), output)
        .with_context(|| node.agent_log_tail())?;
    let result: Value = serde_json::from_slice(&output.stdout).context("the answer to CNI ADD")?;
    let address = result["ips"][0]["address"]
        .as_str()
        .context("CNI ADD gave no address")?;
    let address: Ipv4Net = address
        .parse()
        .with_context(|| format!("address {address:?}"))?;
    let record = PodRecord {
        name,
        node: number,
        namespace,
        container,
        address,
        result,
    };
    shared.update(|state| {
        state.pods.push(record.clone());
        state
            .pods
            .sort_by(|a, b| (a.node, &a.name).cmp(&(b.node, &b.name)));
    })?;
    Ok(Pod::new(Arc::clone(shared), record))
}

/// Calls the node's plugin with the configuration that libcni would pass.
pub(super) fn call_plugin(
    node: &Node,
    verb: &str,
    attachment: Option<(&str, &Path)>,
    extra: &[(&str, Value)],
) -> Result<Output> {
    let list: Value = serde_json::from_str(&node.read_file(host::CONFLIST_PATH)?)
        .with_context(|| format!("understand {}", host::CONFLIST_PATH))?;
    let mut config = list["plugins"][0].clone();
    config["name"] = list["name"].clone();
    // The latest version of those that the list offers, as libcni chooses since version 1.1.0 of
    // CNI.
    let offered = list["cniVersions"].as_array().and_then(|all| all.last());
    config["cniVersion"] = offered.unwrap_or(&list["cniVersion"]).clone();
    for (key, value) in extra {
        config[*key] = value.clone();
    }
    let kind = config["type"]
        .as_str()
        .context("the CNI configuration names no plugin")?;
    let namespace = node.namespace();
    let mut plugin = namespace.command(Path::new(host::PLUGINS).join(kind));
    plugin
        .env("CNI_COMMAND", verb)
        .env("CNI_PATH", host::PLUGINS);
    if let Some((container, netns)) = attachment {
        plugin
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns);
        plugin
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", "IgnoreUnknown=1");
    }
    plugin
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = namespace.start(&mut plugin)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that refuses early does not read its whole input; its answer has the reason.
        let _ = stdin.write_all(json!(config).to_string().as_bytes());
    }
    child.wait_with_output().context("wait for the CNI plugin")
}
