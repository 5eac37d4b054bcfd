//! A Kubernetes cluster on a lab's nodes: a real API server, controller manager and scheduler
//! beside the lab's etcd, and a real containerd, kubelet and kube-proxy in namespaces of each
//! node's own.
//!
//! The lab takes all of it away: whatever is started is written down with the lab's other
//! processes.

mod churn;
mod control_plane;
mod images;
mod manifest;
mod names;
mod node;
mod pod;
mod programs;
mod upstream;
mod wait;

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

pub use churn::{CallTimes, reference_list};
pub use control_plane::{API_SERVER, ApiServer};
pub use images::{OVERLAY_IMAGE, PROBE_IMAGE};
pub use names::Names;
pub use node::Node;
pub use pod::pod;
pub use programs::{BIN_DIR_ENV, NAMES as PROGRAMS, SUITE_DIR, bin_dir};
pub use upstream::{CONFORMANCE, Case, Outcome, SUITE};

use crate::{Lab, Namespace, Options, StoreKind, command, interrupt};

/// The pods' network, as kubeadm and flannel's manifest have it.
pub const POD_NETWORK: &str = "10.244.0.0/16";
/// The Services' network.
pub const SERVICE_NETWORK: &str = "10.96.0.0/16";
/// Where pods look for names; a server is there where a test starts one.
pub const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// What the names of a cluster end in.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// A cluster. Dropping it takes down the lab that it is on, unless that is kept.
pub struct Cluster {
    lab: Lab,
}

impl Cluster {
    /// Starts a cluster on a lab without agents of its own, and gives every node the images. Nodes
    /// are not ready before a network is applied.
    ///
    /// # Errors
    /// When a program is missing or does not come up. Whatever was made until then is taken away.
    pub fn up(options: Options) -> Result<Self> {
        programs::check()?;
        let say = |text: &str| options.say(text);
        let options = Options {
            store: StoreKind::Etcd,
            start_agents: false,
            pods: 0,
            ..options.clone()
        };
        let nodes = options.nodes;
        let bin_dir = options.bin_dir.clone();
        let lab = Lab::up(options.clone())?;
        let cluster = Self { lab };
        let directory = cluster.directory();
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        say("images");
        let archives = images::write(&directory, &bin_dir)?;
        say("API server, controller manager, scheduler");
        control_plane::start(&cluster.lab, &directory)?;
        for number in 1..=nodes {
            interrupt::check()?;
            say(&format!("containerd, kubelet and kube-proxy of n{number}"));
            cluster.node(number).create(&archives)?;
        }
        cluster.wait_registered(nodes)?;
        Ok(cluster)
    }

    /// The cluster on a lab that somebody else has started; none where the lab has no cluster.
    pub fn attach(lab: Lab) -> Option<Self> {
        let cluster = Self { lab };
        cluster.directory().is_dir().then_some(cluster)
    }

    /// The lab below.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Leaves the cluster running when this value is dropped.
    pub fn keep(self) -> Self {
        Self {
            lab: self.lab.keep(),
        }
    }

    /// Takes the cluster and its lab down.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn down(self) -> Result<()> {
        self.lab.down()
    }

    /// Node `number`, counted from 1.
    pub fn node(&self, number: usize) -> Node<'_> {
        Node::new(self, number)
    }

    /// Every node, in order.
    pub fn nodes(&self) -> Vec<Node<'_>> {
        (1..=self.lab.options().nodes)
            .map(|number| self.node(number))
            .collect()
    }

    /// A kubectl with an administrator's rights, to be started by [`Namespace::start`] of
    /// [`Cluster::place`].
    ///
    /// # Errors
    /// When the lab has lost its parts.
    pub fn kubectl_command<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let mut command = self.place()?.command(bin_dir().join("kubectl"));
        command
            .env("KUBECONFIG", self.directory().join("admin.conf"))
            .args(arguments);
        Ok(command)
    }

    /// Where the control plane is.
    ///
    /// # Errors
    /// When the lab has lost its parts.
    pub fn place(&self) -> Result<Namespace> {
        self.lab.namespace("store")
    }

    /// What kubectl prints.
    ///
    /// # Errors
    /// When it fails; what it said is part of the error.
    pub fn kubectl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// What kubectl answers as JSON.
    ///
    /// # Errors
    /// When it fails, or answers something else.
    pub fn json<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<serde_json::Value> {
        let mut command = self.kubectl_command(arguments)?;
        command.arg("--output=json");
        let shown = command::show(&command);
        let text = self.run(&mut command, "")?;
        serde_json::from_str(&text).with_context(|| format!("`{shown}` answers {text}"))
    }

    /// Applies a manifest. This Kubernetes does not know all fields of today's manifests and is
    /// told to pass over them.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        self.kubectl_with(["apply", "--validate=false", "--filename=-"], manifest)
            .map(drop)
    }

    /// The same for a kubectl that reads `input`.
    ///
    /// # Errors
    /// When it fails; what it said is part of the error.
    pub fn kubectl_with<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Result<String> {
        self.run(&mut self.kubectl_command(arguments)?, input)
    }

    fn run(&self, command: &mut Command, input: &str) -> Result<String> {
        let shown = command::show(command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.place()?.start(command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A kubectl that reads nothing has ended, and says why.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child
            .wait_with_output()
            .with_context(|| format!("wait for `{shown}`"))?;
        let output = command::require_success(&shown, output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Stops the API server at once; see [`Cluster::start_api_server`].
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_api_server(&self) -> Result<()> {
        control_plane::stop_api_server(&self.directory())
    }

    /// Starts the API server again and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_api_server(&self) -> Result<()> {
        control_plane::start_api_server(&self.lab, &self.directory())
    }

    /// Where configuration, keys and logs are.
    fn directory(&self) -> PathBuf {
        self.lab.directory().join("kubernetes")
    }
}
