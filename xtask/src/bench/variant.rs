//! Who carries the packets: what is compared.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use nix::sys::signal::Signal;
use overlay_tests::{Node, Running, wait_until};
use serde::{Serialize, Serializer};

use super::services;
use super::stage::{self, CABLE, Stage};

/// A way for packets, in the order that a round takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Variant {
    /// Two hosts without overlay or packet filter on a cable like the nodes': the limit.
    Host,
    /// Our kernel path with the packet filter as deployed: flannel's way.
    Kernel,
    /// The same with kube-proxy's rules of 100 Services on each node.
    #[value(name = "kernel+services")]
    KernelServices,
    /// A real flanneld in overlayd's place.
    Flannel,
    /// The fast path.
    Overlay,
}

impl Variant {
    /// As on the command line and in every output.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Serialize for Variant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

/// Puts one variant after the other in place.
pub struct Switch<'s> {
    stage: &'s Stage,
    flanneld: Option<PathBuf>,
    /// The flag that the agents run with, while they run.
    agents: Option<&'static str>,
    services: bool,
    flannel: Vec<Running>,
}

impl<'s> Switch<'s> {
    /// The stage as it comes up: agents running with the fast path.
    pub fn new(stage: &'s Stage, flanneld: Option<PathBuf>) -> Self {
        Self {
            stage,
            flanneld,
            agents: Some(stage::FAST_PATH_ON),
            services: false,
            flannel: Vec::new(),
        }
    }

    /// Sees to it that `variant` carries the pods' packets.
    pub fn to(&mut self, variant: Variant) -> Result<()> {
        match variant {
            Variant::Host => return Ok(()),
            Variant::Flannel => self.run_flannel()?,
            Variant::Kernel | Variant::KernelServices => self.run_agents(stage::FAST_PATH_OFF)?,
            Variant::Overlay => self.run_agents(stage::FAST_PATH_ON)?,
        }
        let wanted = variant == Variant::KernelServices;
        if self.services != wanted {
            for node in self.stage.nodes() {
                if wanted {
                    services::install(&node, &self.stage.lab.pods())?;
                } else {
                    services::remove(&node)?;
                }
            }
            self.services = wanted;
        }
        self.stage.check_pods_reach_each_other()
    }

    fn run_agents(&mut self, fast_path: &'static str) -> Result<()> {
        if self.agents == Some(fast_path) {
            return Ok(());
        }
        self.end_flannel()?;
        self.end_agents()?;
        self.stage.start_agents(fast_path)?;
        self.agents = Some(fast_path);
        Ok(())
    }

    fn end_agents(&mut self) -> Result<()> {
        self.agents = None;
        for node in self.stage.nodes() {
            node.stop_agent(Signal::SIGTERM)?;
        }
        Ok(())
    }

    /// Runs flanneld over what our kernel path has set up, as after a migration back: same device, same lease.
    fn run_flannel(&mut self) -> Result<()> {
        if !self.flannel.is_empty() {
            return Ok(());
        }
        let flanneld = self.flanneld.clone().context("no flanneld was given")?;
        self.run_agents(stage::FAST_PATH_OFF)?;
        self.end_agents()?;
        let endpoints = format!("--etcd-endpoints={}", self.stage.lab.store_endpoint());
        for node in self.stage.nodes() {
            remove_guard(&node)?;
            let program = flanneld.to_string_lossy().into_owned();
            let interface = format!("--iface={CABLE}");
            // A shell, so that its log goes to a file and no pipe fills up.
            let line = r#"exec "$0" "$@" >>/run/flanneld.log 2>&1"#;
            let flags = ["--ip-masq", &interface, &endpoints];
            let words = ["sh", "-c", line, &program].into_iter().chain(flags);
            self.flannel.push(node.spawn(words)?);
        }
        self.stage.wait_pods_reach_each_other().with_context(|| {
            let logs = self.stage.nodes().map(|node| {
                let log = node.read_file("/run/flanneld.log");
                log.unwrap_or_else(|error| format!("{error:#}"))
            });
            format!("with {}:\n{}", flanneld.display(), logs.join("\n"))
        })
    }

    fn end_flannel(&mut self) -> Result<()> {
        for running in self.flannel.drain(..) {
            running.stop(Signal::SIGTERM)?;
        }
        Ok(())
    }
}

/// Takes our guard of the kernel path off a node: flannel has none, and shall not pay for it.
fn remove_guard(node: &Node) -> Result<()> {
    let listed = node.run(["nft", "list", "tables"])?;
    for line in listed.lines().filter(|line| line.contains("overlay")) {
        let mut words = vec!["nft", "delete"];
        words.extend(line.split_whitespace());
        node.run(words)?;
    }
    Ok(())
}

/// The variants to measure, and why others are left out.
pub fn choose(only: &[Variant], flanneld: Option<&PathBuf>) -> Result<(Vec<Variant>, Vec<String>)> {
    let mut chosen: Vec<Variant> = if only.is_empty() {
        Variant::value_variants().to_vec()
    } else {
        only.to_vec()
    };
    chosen.sort_unstable();
    chosen.dedup();
    let mut skipped = Vec::new();
    match flanneld {
        Some(path) => ensure!(path.is_file(), "{} is no program", path.display()),
        None if only.contains(&Variant::Flannel) => bail!("flannel needs --flanneld PATH"),
        None => {
            if chosen.contains(&Variant::Flannel) {
                skipped.push("flannel: no --flanneld PATH was given".to_owned());
            }
            chosen.retain(|variant| *variant != Variant::Flannel);
        }
    }
    Ok((chosen, skipped))
}

/// Waits until something holds; for [`Stage`].
pub(super) fn eventually(what: &str, holds: impl FnMut() -> bool) -> Result<()> {
    wait_until(what, std::time::Duration::from_secs(30), holds)
}
