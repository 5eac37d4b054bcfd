//! Where it is measured: a lab whose nodes are joined by a cable, and two bare hosts with a cable of their own.

use std::cell::Cell;
use std::fs;

use anyhow::{Context, Result};
use clap::ValueEnum;
use overlay_tests::traffic::{self, Endpoint};
use overlay_tests::{Lab, Namespace, Node, Options, command, reach};
use serde::Serialize;

use super::variant::{Variant, eventually};

/// The device that the overlay uses for its underlay: no bridge in between, so that the figures are those of
/// the two ends. The store is reached by the lab's own underlay.
pub const CABLE: &str = "cable0";

pub const FAST_PATH_ON: &str = "--fast-path=auto";
pub const FAST_PATH_OFF: &str = "--fast-path=off";

/// What a network card would do for the sender, which [`Underlay::Wire`] goes without.
const SEGMENTATION: &[&str] = &[
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp-segmentation",
];

/// What the cable is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// A veth pair as it is: super-packets go through whole.
    Super,
    /// Like a wire: segments on the way, aggregated again by GRO where they arrive.
    Wire,
}

/// Whereto, seen from a pod of the first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// The other node.
    Across,
    /// The same node.
    SameNode,
}

/// The lab, with nodes 1 and 2 in the overlay and 3 and 4 bare.
pub struct Stage {
    pub lab: Lab,
    underlay: Cell<Option<Underlay>>,
}

impl Stage {
    /// Brings everything up, agents running with the fast path.
    pub fn up(mtu: u32) -> Result<Self> {
        let options = Options {
            nodes: 4,
            start_agents: false,
            underlay_mtu: mtu,
            ..Options::for_test("bench")
        };
        let stage = Self {
            lab: Lab::up(options)?,
            underlay: Cell::new(None),
        };
        stage.join(1, 2, mtu)?;
        stage.join(3, 4, mtu)?;
        stage.start_agents(FAST_PATH_ON)?;
        for node in [1, 2] {
            for _ in 0..2 {
                stage.lab.add_pod(node)?;
            }
        }
        for (variant, path) in [
            (Variant::Host, Path::Across),
            (Variant::Overlay, Path::Across),
            (Variant::Overlay, Path::SameNode),
        ] {
            for end in stage.ends(variant, path).into_iter().flatten() {
                end.namespace.inside(set_congestion_control)??;
            }
        }
        stage.wait_pods_reach_each_other()?;
        Ok(stage)
    }

    /// The two nodes of the overlay.
    pub fn nodes(&self) -> [Node; 2] {
        [self.lab.node(1), self.lab.node(2)]
    }

    /// A cable between two nodes.
    fn join(&self, a: usize, b: usize, mtu: u32) -> Result<()> {
        let [from, to] = [a, b].map(|number| self.lab.node(number).namespace());
        command::ip_batch(
            from.name(),
            &format!(
                "link add {CABLE} mtu {mtu} type veth peer name {CABLE} mtu {mtu} netns {}\n",
                to.name()
            ),
        )?;
        for (number, namespace) in [(a, &from), (b, &to)] {
            let address = cable_address(number);
            command::ip_batch(
                namespace.name(),
                &format!("address add {address}/24 dev {CABLE}\nlink set {CABLE} up\n"),
            )?;
        }
        Ok(())
    }

    /// Starts both agents and waits until they know each other.
    pub fn start_agents(&self, fast_path: &str) -> Result<()> {
        let interface = format!("--iface={CABLE}");
        for node in self.nodes() {
            node.start_agent_unready(&[&interface, fast_path])?;
        }
        for node in self.nodes() {
            eventually(&format!("{} to be ready", node.name()), || {
                let ready = node.http_get("/readyz");
                ready.is_ok_and(|answer| answer.status == 200)
                    && node.overlay_routes().is_ok_and(|routes| routes >= 1)
            })
            .with_context(|| node.agent_log_tail())?;
        }
        Ok(())
    }

    /// Makes the cables like `underlay`.
    pub fn lay(&self, underlay: Underlay) -> Result<()> {
        if self.underlay.replace(Some(underlay)) == Some(underlay) {
            return Ok(());
        }
        let (segmentation, aggregation) = match underlay {
            Underlay::Super => ("on", "off"),
            Underlay::Wire => ("off", "on"),
        };
        for node in self.lab.nodes() {
            // ethtool fails on a feature that this kernel's veth does not have.
            let there = node.run(["ethtool", "-k", CABLE])?;
            let is_there = |feature: &&&str| {
                let row = there
                    .lines()
                    .find_map(|row| row.trim_start().strip_prefix(**feature));
                row.is_some_and(|state| state.starts_with(':') && !state.contains("fixed"))
            };
            let features = SEGMENTATION.iter().filter(is_there);
            let mut line = vec!["ethtool", "-K", CABLE, "gro", aggregation];
            line.extend(features.flat_map(|feature| [*feature, segmentation]));
            node.run(line)?;
        }
        Ok(())
    }

    /// The two ends of a measurement; nothing where a variant has no such path.
    pub fn ends(&self, variant: Variant, path: Path) -> Option<[Endpoint; 2]> {
        match (variant, path) {
            (Variant::Host, Path::Across) => Some([3, 4].map(|number| {
                let node = self.lab.node(number);
                Endpoint {
                    name: node.name(),
                    // Without the mount namespace: sockets need the network only.
                    namespace: Namespace::new(node.namespace().name()),
                    address: cable_address(number),
                }
            })),
            (Variant::Host, Path::SameNode) => None,
            (_, Path::Across) => Some([(1, 1), (2, 1)].map(|(node, pod)| self.pod(node, pod))),
            (_, Path::SameNode) => Some([(1, 1), (1, 2)].map(|(node, pod)| self.pod(node, pod))),
        }
    }

    fn pod(&self, node: usize, pod: usize) -> Endpoint {
        reach::of_pod(&self.lab.pod(node, pod))
    }

    /// That a variant works before it is measured.
    pub fn check_pods_reach_each_other(&self) -> Result<()> {
        traffic::tcp(&self.pod(1, 1), &self.pod(1, 2), 1)?;
        traffic::tcp(&self.pod(1, 1), &self.pod(2, 1), 1)?;
        Ok(())
    }

    pub fn wait_pods_reach_each_other(&self) -> Result<()> {
        eventually("pods to reach each other", || {
            self.check_pods_reach_each_other().is_ok()
        })
    }
}

/// Sets the congestion control that every kernel allows in the calling thread's network namespace: where the machine has
/// another one, such as BBR, its pacing would be measured instead of the path.
fn set_congestion_control() -> Result<()> {
    const FILE: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
    fs::write(FILE, "reno").with_context(|| format!("write {FILE}"))
}

/// Nodes 1 and 2, and hosts 3 and 4, each in a network of their own.
fn cable_address(number: usize) -> std::net::Ipv4Addr {
    let last = u8::try_from(number).unwrap_or(u8::MAX);
    std::net::Ipv4Addr::new(192, 168, 67, last)
}
