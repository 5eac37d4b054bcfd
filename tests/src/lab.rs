//! The lab: nodes, pods, store and underlay as namespaces of this machine.
//!
//! ```text
//!   n1p1   n1p2        n2p1 …            one namespace per pod, made by the real CNI plugin
//!     └─cni0─┘           └─cni0
//!       n1                n2             a network and a mount namespace per node, agent inside
//!       eth0 .1           eth0 .2
//!         └───── underlay ──┴───┬──────────┐      a bridge in its own namespace: 192.168.66.0/24
//!                            store .254   outside .253   etcd, and a host beyond (203.0.113.1)
//! ```
//!
//! Every part is written to `lab.json` in the lab's state directory before it is made, so that any
//! later command, and the next lab of the same name, can remove the lab.

mod agent;
mod groups;
mod host;
mod node;
mod options;
mod pod;
mod report;
mod state;
mod store;
mod teardown;
mod underlay;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub use agent::{Agent, FLAGS_ENV as AGENT_FLAGS_ENV};
pub use node::Node;
pub use options::{BIN_DIR_ENV, BackendKind, Options, PREFIX_ENV, StoreKind, prefix_from_env};
pub use pod::Pod;
pub use report::{NodeReport, PodReport, Report, StoreReport, UnderlayReport};
pub use underlay::{OUTSIDE_ADDRESS, OUTSIDE_GATEWAY, UNDERLAY_SUBNET};

use crate::process::Process;
use crate::{Namespace, command, interrupt, wait_until};
use state::Shared;

/// Longest time from an agent's start to the first ready answer.
const AGENT_READY: Duration = Duration::from_secs(30);
/// Longest time until all agents know each other.
const CONVERGED: Duration = Duration::from_secs(20);

/// A running lab. Dropping this value takes the lab down, unless [`Lab::keep`] was called.
pub struct Lab {
    shared: Arc<Shared>,
    keep: bool,
}

impl Lab {
    /// Builds a lab and waits until every node is ready and knows every other one.
    ///
    /// # Errors
    /// Without root; when a lab of that prefix exists already; when a part is missing or does not
    /// start. All parts made until then are removed.
    pub fn up(options: Options) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces, which needs root: run the command with sudo"
        );
        options.check()?;
        teardown::sweep_abandoned()?;
        let shared = Shared::create(options)?;
        let lab = Self {
            shared: Arc::new(shared),
            keep: false,
        };
        lab.build()?;
        lab.shared.update(|state| state.complete = true)?;
        Ok(lab)
    }

    /// The lab that another process left running under this prefix.
    ///
    /// # Errors
    /// When there is none, or its state cannot be read.
    pub fn attach(prefix: &str) -> Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared::open(prefix)?),
            keep: true,
        })
    }

    /// Takes down the remains of the lab of this prefix; returns whether there was one.
    ///
    /// # Errors
    /// When a part could not be removed; the other parts are removed nevertheless.
    pub fn remove(prefix: &str) -> Result<bool> {
        teardown::remove(prefix)
    }

    /// Leaves the lab running when this value is dropped.
    pub fn keep(mut self) -> Self {
        self.keep = true;
        self
    }

    /// Takes the lab down and reports the parts that could not be removed.
    ///
    /// # Errors
    /// When a part could not be removed; the other parts are removed nevertheless.
    pub fn down(mut self) -> Result<()> {
        self.keep = true;
        self.take_down()
    }

    fn take_down(&self) -> Result<()> {
        // Open files keep the hierarchy of control groups mounted.
        let groups = &self.shared.groups;
        groups
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        teardown::remove(&self.shared.prefix()).map(drop)
    }

    /// Node `number`, counted from 1.
    ///
    /// # Panics
    /// When the lab has no such node.
    pub fn node(&self, number: usize) -> Node {
        self.nodes()
            .into_iter()
            .nth(number.wrapping_sub(1))
            .expect("the lab has a node of that number")
    }

    /// Pod `number` of node `node`, both counted from 1.
    ///
    /// # Panics
    /// When the lab has no such pod.
    pub fn pod(&self, node: usize, number: usize) -> Pod {
        let name = format!("n{node}p{number}");
        self.pods()
            .into_iter()
            .find(|pod| pod.name() == name)
            .expect("the lab has a pod of that name")
    }

    /// Every node, in order.
    pub fn nodes(&self) -> Vec<Node> {
        let count = self.shared.read(|state| state.nodes.len());
        (0..count)
            .map(|index| Node::new(Arc::clone(&self.shared), index))
            .collect()
    }

    /// Every pod, in order.
    pub fn pods(&self) -> Vec<Pod> {
        let pods = self.shared.read(|state| state.pods.clone());
        pods.into_iter()
            .map(|record| Pod::new(Arc::clone(&self.shared), record))
            .collect()
    }

    /// Adds a pod on node `node` (counted from 1) by calling the CNI plugin.
    ///
    /// # Errors
    /// When the plugin fails; its message is part of the error.
    pub fn add_pod(&self, node: usize) -> Result<Pod> {
        pod::add(&self.shared, node)
    }

    /// Makes a network namespace that is removed with the lab: a container without a network.
    ///
    /// # Errors
    /// When another namespace has that name.
    pub fn add_namespace(&self, name: &str) -> Result<Namespace> {
        let namespace = add_namespace(&self.shared, name)?;
        Ok(Namespace::new(namespace).with_programs(self.options().bin_dir))
    }

    /// Makes a control group in every hierarchy, for a node whose processes are to be separate from
    /// those of other nodes.
    ///
    /// # Errors
    /// On a machine without control groups of version 1.
    pub fn add_control_groups(&self, node: usize) -> Result<Vec<PathBuf>> {
        let groups = groups::create(&format!("{}n{node}", self.shared.prefix()))?;
        let paths: Vec<PathBuf> = groups.iter().map(|group| group.path.clone()).collect();
        self.shared
            .update(|state| state.control_groups.extend(paths.iter().cloned()))?;
        let mut held = self
            .shared
            .groups
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        held.extend(groups);
        Ok(paths)
    }

    /// The control group (version 2) of a node's processes and threads, where nodes are
    /// [`apart`](Options::apart).
    pub fn control_group(&self, node: usize) -> Option<PathBuf> {
        let group = |state: &state::State| state.nodes.get(node.wrapping_sub(1))?.group.clone();
        self.shared.read(group)
    }

    /// Registers a process with the lab: the process is ended when the lab is taken down.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn adopt(&self, process: Process) -> Result<()> {
        self.shared.update(|state| {
            state.processes.retain(Process::is_alive);
            state.processes.push(process);
        })
    }

    /// Removes a node's network namespace with its contents, and connects a new one to the
    /// underlay, as after a reboot. The node's processes must have ended.
    ///
    /// # Errors
    /// When a namespace or a link cannot be made.
    pub fn renew_network(&self, node: usize) -> Result<()> {
        host::renew_network(&self.shared, node)
    }

    /// The namespaces of a node (`n1`), a pod (`n1p1`), the underlay (`underlay`), the store
    /// (`store`) or the host beyond the cluster (`outside`).
    ///
    /// # Errors
    /// When nothing in the lab has that name.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        if let Some(node) = self.nodes().into_iter().find(|node| node.name() == name) {
            return Ok(node.namespace());
        }
        let full = format!("{}{name}", self.shared.prefix());
        let known = self.shared.read(|state| state.namespaces.clone());
        if !known.contains(&full) {
            bail!("the lab has no {name}; it has: {}", known.join(", "));
        }
        Ok(Namespace::new(full).with_programs(self.options().bin_dir))
    }

    /// The options that this lab was made with.
    pub fn options(&self) -> Options {
        self.shared.read(|state| state.options.clone())
    }

    /// Directory of the lab's state: `lab.json`, logs, the store's data.
    pub fn directory(&self) -> &Path {
        self.shared.directory()
    }

    /// The address of the store for clients inside the lab: a URL (etcd) or a path (dir).
    pub fn store_endpoint(&self) -> String {
        store::endpoint(&self.options())
    }

    /// Runs `etcdctl` (API 3) against the lab's etcd and returns what it prints.
    ///
    /// # Errors
    /// When the lab's store is not etcd, or etcdctl fails.
    pub fn etcdctl(&self, arguments: &[&str]) -> Result<String> {
        store::etcdctl(&self.shared, arguments)
    }

    /// The store's process (etcd), for fault tests: that of its first member.
    pub fn store_process(&self) -> Option<Process> {
        self.store_member(1)
    }

    /// The process of a member of etcd, counted from 1.
    pub fn store_member(&self, number: usize) -> Option<Process> {
        self.shared
            .read(|state| state.store_processes.get(&number).cloned())
    }

    /// The data of a member of etcd, counted from 1.
    pub fn store_data(&self, number: usize) -> PathBuf {
        store::data(&self.shared, number)
    }

    /// Stops every member of etcd and leaves the data; see [`Lab::start_store`].
    ///
    /// # Errors
    /// When the member does not end.
    pub fn stop_store(&self) -> Result<()> {
        store::stop(&self.shared)
    }

    /// Starts those members of etcd that do not run, on the data that they left.
    ///
    /// # Errors
    /// When etcd does not answer in time.
    pub fn start_store(&self) -> Result<()> {
        store::start(&self.shared, &[])
    }

    /// Starts etcd by another program that calls `exec`, such as `env NAME=VALUE`.
    ///
    /// # Errors
    /// When etcd does not answer in time.
    pub fn start_store_through(&self, program: &[&str]) -> Result<()> {
        store::start(&self.shared, program)
    }

    /// A report on the lab for people and scripts.
    pub fn report(&self) -> Report {
        report::report(self)
    }

    /// Waits until every running agent has a route to each other node and reports that it is ready.
    ///
    /// # Errors
    /// When that takes too long; the last log lines of the late agent are part of the error.
    pub fn wait_converged(&self) -> Result<()> {
        let nodes = self.nodes();
        for node in &nodes {
            let peers = nodes.len() - 1;
            wait_until(
                &format!("routes to {peers} peers on {}", node.name()),
                CONVERGED,
                || node.overlay_routes().is_ok_and(|routes| routes >= peers),
            )
            .and_then(|()| node.wait_ready(AGENT_READY))
            .with_context(|| node.agent_log_tail())?;
        }
        Ok(())
    }

    fn build(&self) -> Result<()> {
        let options = self.options();
        let say = |text: &str| options.say(text);
        say("underlay");
        underlay::create(&self.shared)?;
        say("store");
        store::create(&self.shared)?;
        for number in 1..=options.nodes {
            interrupt::check()?;
            say(&format!("node n{number}"));
            host::create(&self.shared, number)?;
        }
        if !options.start_agents {
            return Ok(());
        }
        say("agents");
        for node in self.nodes() {
            node.start_agent_unready(&[])?;
        }
        for node in self.nodes() {
            node.wait_ready(AGENT_READY)?;
        }
        self.wait_converged()?;
        for node in 1..=options.nodes {
            say(&format!("pods of n{node}"));
            for _ in 0..options.pods {
                interrupt::check()?;
                self.add_pod(node)?;
            }
        }
        self.wait_converged()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.take_down()
        {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Makes a network namespace and records it first.
fn add_namespace(shared: &Shared, name: &str) -> Result<String> {
    let full = format!("{}{name}", shared.prefix());
    if Path::new(crate::netns::NETNS_DIR).join(&full).exists() {
        bail!("network namespace {full} exists and belongs to no lab: `ip netns delete {full}`");
    }
    shared.update(|state| state.namespaces.push(full.clone()))?;
    command::ip(&format!("netns add {full}"))?;
    command::ip(&format!("-n {full} link set lo up"))?;
    Ok(full)
}
