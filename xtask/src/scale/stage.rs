//! The stage of the measurement: one real node with one real agent, a real store, and routers that
//! lead to all other nodes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use overlay_tests::{Lab, Namespace, Node, Options, Process, Running, command};
use serde::{Serialize, Serializer};

use super::fast_path::PeersMap;
use super::kernel_path::KernelPath;
use super::leases::{self, Invented, LeaseChange, ROUTERS};
use super::store::{Kind, Store};

/// Wait for an event before the map is read again.
const LOOK: Duration = Duration::from_millis(1);

/// The program that serves the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    /// Our agent, whose path the lab knows.
    Overlayd,
    /// A real flanneld.
    Flanneld(PathBuf),
}

impl Agent {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Overlayd => "overlayd",
            Self::Flanneld(_) => "flanneld",
        }
    }
}

impl Serialize for Agent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The lab, and the known state of both paths.
pub struct Stage {
    pub store: Store,
    pub process: Process,
    agent: Agent,
    peers: u32,
    kernel: KernelPath,
    fast: Option<PeersMap>,
    /// A flanneld, which ends with the stage.
    running: Option<Running>,
    node: Node,
    lab: Lab,
}

impl Stage {
    /// Starts a node, writes the leases of `peers` invented nodes and starts the agent.
    pub fn up(kind: Kind, agent: &Agent, bin_dir: PathBuf, peers: u32) -> Result<Self> {
        let lab = Lab::up(Options {
            nodes: 1,
            pods: 0,
            start_agents: false,
            network: leases::network(),
            bin_dir,
            ..Options::for_test("scale")
        })?;
        let node = lab.node(1);
        let mut setup = String::new();
        for router in 0..ROUTERS {
            let (behind, address) = (leases::behind(router), leases::router_address(router));
            // Writing to a String cannot fail.
            let _ = writeln!(setup, "route add {behind} via {address} dev eth0");
        }
        command::ip_batch(node.namespace().name(), &setup)?;
        let store = Store::of(kind, &lab)?;
        store.fill((1..=peers).map(Invented::new))?;
        let kernel = KernelPath::follow(&node.namespace())?;
        for router in 0..ROUTERS {
            replace_router(&node.namespace(), router, leases::router_mac(router, 0))?;
        }
        let (process, running) = start(&lab, &node, agent, &store.agent_flags())?;
        Ok(Self {
            store,
            process,
            agent: agent.clone(),
            peers,
            kernel,
            fast: None,
            running,
            node,
            lab,
        })
    }

    /// Removes the lab.
    pub fn down(self) -> Result<()> {
        let Self { running, lab, .. } = self;
        drop(running);
        lab.down()
    }

    /// A directory for files of the measurement, which is removed with the lab.
    pub fn directory(&self) -> &Path {
        self.lab.directory()
    }

    /// The node's network namespace.
    pub fn namespace(&self) -> Namespace {
        self.node.namespace()
    }

    /// Waits a moment for events and takes them in.
    pub fn look(&mut self) -> Result<()> {
        self.kernel.take_in(LOOK)?;
        if self.process.is_alive() {
            return Ok(());
        }
        bail!("{} has ended; {}", self.agent.name(), self.log())
    }

    /// Whether the agent reports ready, and both paths lead to all peers.
    pub fn is_ready(&mut self) -> Result<bool> {
        let peers = self.peers as usize;
        if self.kernel.routes() < peers {
            return Ok(false);
        }
        if self.agent != Agent::Overlayd {
            return Ok(true);
        }
        if self.fast.is_none() {
            self.fast = PeersMap::open(&self.namespace())?;
        }
        let complete = match &self.fast {
            Some(fast) => fast.len()? >= peers,
            None => false,
        };
        let says_so = || {
            self.node
                .http_get("/readyz")
                .is_ok_and(|answer| answer.status == 200)
        };
        Ok(complete && says_so())
    }

    /// Whether both paths contain the change.
    pub fn is_done(&self, change: LeaseChange) -> Result<bool> {
        let kernel = match change {
            LeaseChange::Is(peer) => self.kernel.has(peer),
            LeaseChange::Gone(peer) => self.kernel.lacks(peer),
        };
        match (&self.fast, change) {
            (Some(fast), LeaseChange::Is(peer)) => Ok(kernel && fast.has(peer)?),
            (Some(fast), LeaseChange::Gone(peer)) => Ok(kernel && fast.lacks(peer)?),
            (None, _) => Ok(kernel),
        }
    }

    /// Whether the fast path sends no packet to a router's old MAC address; true without a fast
    /// path.
    pub fn leads_through(&self, router: u32, mac: [u8; 6]) -> Result<bool> {
        let Some(fast) = &self.fast else {
            return Ok(true);
        };
        for peer in (1..=self.peers).map(Invented::new) {
            if peer.router() == router && !fast.leads_through(peer, mac)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the agent has a fast path.
    pub fn has_fast_path(&self) -> bool {
        self.fast.is_some()
    }

    /// The agent's last log lines.
    pub fn log(&self) -> String {
        match self.agent {
            Agent::Overlayd => self.node.agent_log_tail(),
            Agent::Flanneld(_) => {
                let log = self.node.read_file(FLANNELD_LOG);
                log.unwrap_or_else(|error| format!("{error:#}"))
            }
        }
    }
}

/// Gives a router of a node another MAC address, and makes the node's neighbour table learn the
/// address.
pub fn replace_router(node: &Namespace, router: u32, mac: [u8; 6]) -> Result<()> {
    let (name, address) = (node.name(), leases::router_address(router));
    let mac = leases::text(mac);
    let line = format!("-n {name} neighbour replace {address} lladdr {mac} dev eth0 nud permanent");
    command::ip(&line).map(drop)
}

const FLANNELD_LOG: &str = "/run/flanneld.log";

fn start(
    lab: &Lab,
    node: &Node,
    agent: &Agent,
    flags: &[String],
) -> Result<(Process, Option<Running>)> {
    match agent {
        Agent::Overlayd => {
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            Ok((node.start_agent_unready(&flags)?.process, None))
        }
        Agent::Flanneld(program) => {
            let endpoints = format!("--etcd-endpoints={}", lab.store_endpoint());
            let program = program.to_string_lossy().into_owned();
            // A shell redirects the log to a file, because a pipe would fill up.
            let line = format!(r#"exec "$0" "$@" >>{FLANNELD_LOG} 2>&1"#);
            let words = [
                "sh",
                "-c",
                &line,
                &program,
                "--ip-masq",
                "--iface=eth0",
                &endpoints,
            ];
            let running = node.spawn(words)?;
            Ok((running.process().context("flanneld")?, Some(running)))
        }
    }
}
