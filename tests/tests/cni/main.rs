//! The CNI plugin's duties to runtimes and to other pods, with an agent and without.

mod alone;
mod asked;
mod bridge;
mod installed;
mod late;
mod mac;
mod reboot;

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{Lab, Node, Options, StoreKind};
use serde_json::Value;

/// Longest time until an agent notices a change.
const NOTICED: Duration = Duration::from_secs(10);
/// The directory of addresses.
const ADDRESSES: &str = "/var/lib/cni/networks/cbr0";

/// A lab without etcd.
fn lab(name: &str, nodes: usize, fast_path: &str) -> Result<Lab> {
    Lab::up(Options {
        nodes,
        store: StoreKind::Dir,
        fast_path: fast_path.into(),
        ..Options::for_test(name)
    })
}

/// An attachment for which a test calls the plugin itself.
struct Attachment {
    node: Node,
    container: String,
    netns: String,
}

impl Attachment {
    /// A container without a network yet, in the namespace `name` of the lab.
    fn new(lab: &Lab, node: usize, name: &str) -> Result<Self> {
        let netns = lab.add_namespace(name)?;
        Ok(Self {
            node: lab.node(node),
            container: name.to_owned(),
            netns: netns.path().display().to_string(),
        })
    }

    /// Calls the plugin with a configuration, and with variables besides the usual ones.
    fn call(&self, verb: &str, conf: &Value, more: &[(&str, &str)]) -> Result<Output> {
        let place = self.node.namespace();
        let mut plugin = place.command("/opt/cni/bin/flannel");
        plugin
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .envs(more.iter().copied())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = place.start(&mut plugin)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that refuses early does not read its whole input.
            let _ = stdin.write_all(conf.to_string().as_bytes());
        }
        Ok(child.wait_with_output()?)
    }

    /// The result of a call that must succeed.
    fn answer(&self, verb: &str, conf: &Value, more: &[(&str, &str)]) -> Result<Value> {
        let output = self.call(verb, conf, more)?;
        ensure!(output.status.success(), "{verb}: {output:?}");
        if output.stdout.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout).context("the answer is not JSON")
    }

    /// The error of a call that must fail.
    fn error(&self, verb: &str, conf: &Value, more: &[(&str, &str)]) -> Result<Value> {
        let output = self.call(verb, conf, more)?;
        ensure!(!output.status.success(), "{verb} succeeds: {output:?}");
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
    }
}

/// The addresses that are in use on a node.
fn taken(node: &Node) -> Result<Vec<String>> {
    let files = node.run(["ls", ADDRESSES])?;
    let is_address = |name: &&str| name.parse::<std::net::IpAddr>().is_ok();
    Ok(files
        .lines()
        .filter(is_address)
        .map(str::to_owned)
        .collect())
}
