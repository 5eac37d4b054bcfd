//! A node of the lab.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use nix::sys::signal::Signal;
use serde_json::json;

use super::agent::{self, Agent};
use super::pod::{self, Pod};
use super::state::{NodeRecord, Shared};
use crate::http::{self, HttpAnswer};
use crate::process::{Process, Running};
use crate::{Namespace, command, wait_until};

/// A node of the lab. The value is a handle: cheap to clone, valid while the lab exists.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
    index: usize,
}

impl Node {
    pub(super) fn new(shared: Arc<Shared>, index: usize) -> Self {
        Self { shared, index }
    }

    fn record(&self) -> NodeRecord {
        self.shared.read(|state| state.nodes[self.index].clone())
    }

    /// `n1`, `n2`, …
    pub fn name(&self) -> String {
        self.record().name
    }

    /// Number of the node, from 1.
    pub fn number(&self) -> usize {
        self.index + 1
    }

    /// Network and mount namespace of the node.
    pub fn namespace(&self) -> Namespace {
        let record = self.record();
        let programs = self.shared.read(|state| state.options.bin_dir.clone());
        Namespace::new(record.namespace)
            .with_mount(record.mount)
            .in_group(record.group)
            .with_programs(programs)
    }

    /// Address of the node on the underlay, on the node's `eth0`.
    pub fn underlay_address(&self) -> Ipv4Addr {
        self.record().underlay
    }

    /// The node's pods.
    pub fn pods(&self) -> Vec<Pod> {
        let mine = |record: &&super::state::PodRecord| record.node == self.number();
        let records = self
            .shared
            .read(|state| state.pods.iter().filter(mine).cloned().collect());
        let records: Vec<_> = records;
        records
            .into_iter()
            .map(|record| Pod::new(Arc::clone(&self.shared), record))
            .collect()
    }

    /// The pod subnet that the node's agent leased, from `/run/flannel/subnet.env`.
    ///
    /// # Errors
    /// Before the agent has a lease.
    pub fn subnet(&self) -> Result<Ipv4Net> {
        let text = self.read_file("/run/flannel/subnet.env")?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        let value = value.context("subnet.env has no FLANNEL_SUBNET")?;
        let gateway: Ipv4Net = value.parse().with_context(|| format!("subnet {value:?}"))?;
        Ok(gateway.trunc())
    }

    /// Reads a file in the node's mount namespace.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_file(&self, path: impl AsRef<Path> + Send) -> Result<String> {
        let path = path.as_ref().to_owned();
        let context = format!("read {} on {}", path.display(), self.name());
        self.namespace()
            .inside(|| fs::read_to_string(path))?
            .context(context)
    }

    /// Runs a program on the node; see [`Namespace::exec`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn exec<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Output> {
        self.namespace().exec(line)
    }

    /// Runs a program on the node that must succeed; see [`Namespace::run`].
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<String> {
        self.namespace().run(line)
    }

    /// Starts a program on the node; see [`Namespace::spawn`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Running> {
        self.namespace().spawn(line)
    }

    /// Runs a program on the node and returns its output as JSON; see [`Namespace::json`].
    ///
    /// # Errors
    /// When the program cannot be started, fails, or its output is not JSON.
    pub fn json<S: AsRef<OsStr>>(
        &self,
        line: impl IntoIterator<Item = S>,
    ) -> Result<serde_json::Value> {
        self.namespace().json(line)
    }

    /// Starts the agent with its usual flags, `extra` ones replacing those of the same name
    /// (`--name=value`), and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; its last log lines are part of the error.
    pub fn start_agent(&self, extra: &[&str]) -> Result<()> {
        self.start_agent_unready(extra)?;
        self.wait_ready(super::AGENT_READY)
    }

    /// Starts the agent without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent_unready(&self, extra: &[&str]) -> Result<Agent> {
        let program = self
            .shared
            .read(|state| state.options.bin_dir.join("overlayd"));
        self.start_agent_from(&program, extra)
    }

    /// Starts another build of the agent without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent_from(&self, program: &Path, extra: &[&str]) -> Result<Agent> {
        agent::start(&self.shared, self.index, &self.namespace(), program, extra)
    }

    /// Ends the agent with `signal` and waits for its end. A node without an agent is no error.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_agent(&self, signal: Signal) -> Result<()> {
        agent::stop(&self.shared, self.index, signal)
    }

    /// The agent's process, running or not.
    pub fn agent(&self) -> Option<Process> {
        self.record().agent
    }

    /// The agent's log file.
    pub fn agent_log(&self) -> PathBuf {
        agent::log_path(&self.shared, &self.name())
    }

    /// The agent's last log lines, with a headline, for error messages.
    pub fn agent_log_tail(&self) -> String {
        let log = self.agent_log();
        format!("last lines of {}:\n{}", log.display(), agent::tail(&log))
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// After `limit`, or when the agent has ended.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        let alive = || self.agent().is_some_and(|process| process.is_alive());
        let ready = || {
            self.http_get("/readyz")
                .is_ok_and(|answer| answer.status == 200)
        };
        wait_until(&format!("{} to be ready", self.name()), limit, || {
            !alive() || ready()
        })
        .with_context(|| self.agent_log_tail())?;
        if !alive() {
            bail!(
                "the agent of {} has ended; {}",
                self.name(),
                self.agent_log_tail()
            );
        }
        Ok(())
    }

    /// Sends a request to the agent's HTTP server.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn http_get(&self, path: &str) -> Result<HttpAnswer> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, agent::HEALTH_PORT));
        self.namespace().inside(|| http::get(server, path))?
    }

    /// Number of routes that carry our protocol id: one per known peer.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn overlay_routes(&self) -> Result<usize> {
        let namespace = self.record().namespace;
        Ok(
            command::ip(&format!("-n {namespace} route show proto 111"))?
                .lines()
                .count(),
        )
    }

    /// Calls the CNI plugin as a runtime would: `verb` with the environment of an attachment, or
    /// without one (`STATUS`, `GC`, `VERSION`). `extra` keys are added to the configuration.
    ///
    /// # Errors
    /// When the plugin cannot be run; its failure is in the output.
    pub fn cni(
        &self,
        verb: &str,
        attachment: Option<(&str, &Path)>,
        extra: &[(&str, serde_json::Value)],
    ) -> Result<Output> {
        pod::call_plugin(self, verb, attachment, extra)
    }

    /// Calls the CNI plugin with GC, like a runtime that has this node's pods and no others.
    ///
    /// # Errors
    /// When the plugin fails; its message is part of the error.
    pub fn collect_garbage(&self) -> Result<()> {
        let pods = self.pods();
        let valid = pods
            .iter()
            .map(|pod| json!({"containerID": pod.container(), "ifname": "eth0"}));
        let extra = [
            ("cniVersion", json!("1.1.0")),
            ("cni.dev/valid-attachments", valid.collect()),
        ];
        let output = self.cni("GC", None, &extra)?;
        command::require_success(&format!("CNI GC on {}", self.name()), output).map(drop)
    }
}
