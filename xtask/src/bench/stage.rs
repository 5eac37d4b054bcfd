//! The stage of the measurement: two nodes for each variant, joined by a cable. All nodes run at
//! the same time, so that one variant can be measured directly after the other.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use overlay_tests::load::{Cores, Server, round_trips};
use overlay_tests::traffic::Endpoint;
use overlay_tests::{Lab, Namespace, Node, Options, Running, command, reach, wait_until};

use super::class::Class;
use super::plain;
use super::plan::Plan;
use super::services::{self, Measured, NODE_PORT, PORT, TARGET_PORT};
use super::underlay::Underlay;
use super::variant::{FAST_PATH_OFF, FAST_PATH_ON, Recipe, Variant};
use crate::{build, shell};

/// The overlay's underlay device, without a bridge, so that the figures are those of the two ends.
/// The store is reached over the lab's own underlay.
const CABLE: &str = "cable0";

/// flannel's file for the CNI plugin.
const SUBNET_ENV: &str = "/run/flannel/subnet.env";
/// Longest time until a pair of nodes is ready.
const READY: Duration = Duration::from_secs(30);

/// The offloads of a network card for the sender, which [`Underlay::Wire`] does without.
const SEGMENTATION: &[&str] = &[
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp-segmentation",
];

/// The lab, with two nodes for each variant.
pub struct Stage {
    pub lab: Lab,
    /// The number of the first node of each variant; the second follows.
    pairs: BTreeMap<Variant, usize>,
    /// The pods of both nodes, for each variant that has any.
    pods: BTreeMap<Variant, [Vec<Endpoint>; 2]>,
    flanneld: Option<PathBuf>,
    flannel: Vec<Running>,
    underlay: Cell<Option<Underlay>>,
    classes: Vec<Class>,
    /// Number of Services in kube-proxy's rules.
    services: usize,
}

impl Stage {
    /// Starts all nodes.
    pub fn up(plan: &Plan, mtu: u32, flanneld: Option<PathBuf>) -> Result<Self> {
        let variants = &plan.variants;
        let options = Options {
            nodes: 2 * variants.len(),
            start_agents: false,
            underlay_mtu: mtu,
            // Services at the socket need nodes with separate sockets.
            apart: true,
            ..Options::for_test("bench")
        };
        let pairs = variants.iter().copied().zip((1..).step_by(2)).collect();
        let mut stage = Self {
            lab: Lab::up(options)?,
            pairs,
            pods: BTreeMap::new(),
            flanneld,
            flannel: Vec::new(),
            underlay: Cell::new(None),
            classes: plan.classes.clone(),
            services: plan.services,
        };
        for variant in variants {
            shell::progress(&format!("two nodes: {}", variant.name()));
            stage
                .join(*variant, mtu)
                .and_then(|()| stage.furnish(*variant, mtu))
                .with_context(|| format!("bring up {}", variant.name()))?;
        }
        Ok(stage)
    }

    /// Removes all nodes.
    pub fn down(self) -> Result<()> {
        for running in self.flannel {
            running.stop(Signal::SIGTERM)?;
        }
        self.lab.down()
    }

    fn nodes(&self, variant: Variant) -> [Node; 2] {
        let first = self.pairs.get(&variant).copied().unwrap_or(1);
        [first, first + 1].map(|number| self.lab.node(number))
    }

    /// A cable between the nodes of a variant.
    fn join(&self, variant: Variant, mtu: u32) -> Result<()> {
        let [from, to] = self.nodes(variant).map(|node| node.namespace());
        let peer = to.name();
        command::ip_batch(
            from.name(),
            &format!(
                "link add {CABLE} mtu {mtu} type veth peer name {CABLE} mtu {mtu} netns {peer}\n"
            ),
        )?;
        for (namespace, address) in [from, to].iter().zip(CABLE_ADDRESSES) {
            command::ip_batch(
                namespace.name(),
                &format!("address add {address}/24 dev {CABLE}\nlink set {CABLE} up\n"),
            )?;
        }
        Ok(())
    }

    /// Starts the software that carries a variant's packets, and checks that packets arrive.
    fn furnish(&mut self, variant: Variant, mtu: u32) -> Result<()> {
        match variant.recipe() {
            Recipe::Bare | Recipe::Plain => {}
            Recipe::Agent(flag) => self.start_agents(variant, flag)?,
            Recipe::Services | Recipe::Flannel => self.start_agents(variant, FAST_PATH_OFF)?,
            Recipe::Programs(feature) => {
                let object = build::programs_with(&feature)?;
                self.start_agents(variant, &format!("--programs={}", object.display()))?;
            }
        }
        if let Some(pods) = self.add_pods(variant, mtu)? {
            self.pods.insert(variant, pods);
        }
        if variant.recipe() == Recipe::Flannel {
            self.run_flannel(variant)?;
        }
        let needs_services = self.classes.iter().any(|class| class.needs_services());
        if variant.recipe() == Recipe::Services || needs_services {
            self.install_services(variant)?;
        }
        for class in &self.classes {
            if variant.recipe() == Recipe::Bare && !class.is_across() {
                continue;
            }
            let (from, to) = self.ends(variant, *class);
            for end in [&from, &to.endpoint] {
                end.namespace.inside(set_congestion_control)??;
            }
            let (cores, length) = (Cores::one()?, Duration::from_millis(1));
            wait_until(&format!("an answer ({})", class.title()), READY, || {
                round_trips::tcp(&from, &to, cores, length).is_ok()
            })?;
        }
        Ok(())
    }

    /// Writes kube-proxy's rules to both nodes of a variant that has pods.
    fn install_services(&self, variant: Variant) -> Result<()> {
        let Some([first, second]) = self.pods.get(&variant) else {
            return Ok(());
        };
        let pods: Vec<_> = first.iter().chain(second).map(|pod| pod.address).collect();
        let served = [
            (Class::Service, second[0].address),
            (Class::LocalService, first[1].address),
            (Class::NodePort, first[0].address),
        ];
        let measured = served.map(|(class, pod)| Measured {
            address: service_address(class),
            pod,
            has_node_port: class == Class::NodePort,
        });
        for node in &self.nodes(variant) {
            services::install(node, self.services, &pods, &measured)?;
        }
        if variant.recipe() == Recipe::Agent(FAST_PATH_ON) {
            self.tell_of_services(variant, &measured)?;
        }
        Ok(())
    }

    /// Writes the measured Services to the agents' store, and waits until sockets are served.
    fn tell_of_services(&self, variant: Variant, measured: &[Measured]) -> Result<()> {
        for (key, object) in services::objects(measured) {
            let key = format!("/{}/{key}", variant.name());
            self.lab.etcdctl(&["put", &key, &object])?;
        }
        for node in self.nodes(variant) {
            wait_until("Services at the socket", READY, || {
                let listed = node.run(["overlayctl", "services", "--output", "json"]);
                let is_in = |text: &str, it: &Measured| text.contains(&it.address.to_string());
                listed.is_ok_and(|text| measured.iter().all(|it| is_in(&text, it)))
            })
            .with_context(|| node.agent_log_tail())?;
        }
        Ok(())
    }

    /// Makes two pods on the first node and one on the second; none on bare hosts.
    fn add_pods(&self, variant: Variant, mtu: u32) -> Result<Option<[Vec<Endpoint>; 2]>> {
        let nodes = self.nodes(variant);
        match variant.recipe() {
            Recipe::Bare => return Ok(None),
            Recipe::Plain => {
                let pods = plain::install(&self.lab, &nodes, (CABLE, mtu), CABLE_ADDRESSES)?;
                return Ok(Some(pods));
            }
            Recipe::Agent(_) | Recipe::Services | Recipe::Flannel | Recipe::Programs(_) => {}
        }
        let add = |node: &Node, count: usize| -> Result<Vec<Endpoint>> {
            let pods = (0..count).map(|_| self.lab.add_pod(node.number()));
            pods.map(|pod| Ok(reach::of_pod(&pod?))).collect()
        };
        let [first, second] = &nodes;
        Ok(Some([add(first, 2)?, add(second, 1)?]))
    }

    /// Starts both agents, in a separate cluster, and waits until they know each other.
    fn start_agents(&self, variant: Variant, flag: &str) -> Result<()> {
        let prefix = format!("/{}", variant.name());
        let options = self.lab.options().with_backend(variant.backend());
        let network = options.network.to_string();
        self.lab
            .etcdctl(&["put", &format!("{prefix}/config"), &network])?;
        let interface = format!("--iface={CABLE}");
        let prefix = format!("--etcd-prefix={prefix}");
        for node in self.nodes(variant) {
            node.start_agent_unready(&[&interface, &prefix, FAST_PATH_ON, flag])?;
        }
        for node in self.nodes(variant) {
            wait_until(&format!("{} to be ready", node.name()), READY, || {
                let ready = node.http_get("/readyz");
                ready.is_ok_and(|answer| answer.status == 200)
                    && node.overlay_routes().is_ok_and(|routes| routes >= 1)
            })
            .with_context(|| node.agent_log_tail())?;
        }
        Ok(())
    }

    /// Runs flanneld on the state that our kernel path has set up, as after a migration back: same
    /// device, same lease.
    fn run_flannel(&mut self, variant: Variant) -> Result<()> {
        let flanneld = self.flanneld.clone().context("no flanneld was given")?;
        let endpoints = format!("--etcd-endpoints={}", self.lab.store_endpoint());
        let prefix = format!("--etcd-prefix=/{}", variant.name());
        for node in self.nodes(variant) {
            node.stop_agent(Signal::SIGTERM)?;
            remove_guard(&node)?;
            // flanneld writes this file when its state is complete; flanneld finds its lease in the
            // store.
            node.run(["rm", SUBNET_ENV])?;
            let program = flanneld.to_string_lossy().into_owned();
            let interface = format!("--iface={CABLE}");
            // A shell redirects the log to a file, because a pipe would fill up.
            let line = r#"exec "$0" "$@" >>/run/flanneld.log 2>&1"#;
            let flags = ["--ip-masq", &interface, &endpoints, &prefix];
            let words = ["sh", "-c", line, &program].into_iter().chain(flags);
            self.flannel.push(node.spawn(words)?);
        }
        wait_until("flanneld to be ready", READY, || {
            let mut nodes = self.nodes(variant).into_iter();
            nodes.all(|node| node.read_file(SUBNET_ENV).is_ok())
        })
        .with_context(|| {
            let logs = self.nodes(variant).map(|node| {
                let log = node.read_file("/run/flanneld.log");
                log.unwrap_or_else(|error| format!("{error:#}"))
            });
            format!("with {}:\n{}", flanneld.display(), logs.join("\n"))
        })
    }

    /// Sets the cables up like `underlay`.
    pub fn lay(&self, underlay: Underlay) -> Result<()> {
        if self.underlay.replace(Some(underlay)) == Some(underlay) {
            return Ok(());
        }
        // The ring of a veth pair with GRO has 256 places, and super-packets become more segments
        // than that. Without a queue before the ring, as every network card has one, the sender
        // would lose packets, and the measurement would show TCP's retransmissions.
        let (segmentation, aggregation, queue) = match underlay {
            Underlay::Super => ("on", "off", "noqueue"),
            Underlay::Wire => ("off", "on", "pfifo"),
        };
        for node in self.lab.nodes() {
            // ethtool fails for a feature that this kernel's veth does not have.
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
            node.run(["tc", "qdisc", "replace", "dev", CABLE, "root", queue])?;
        }
        Ok(())
    }

    /// The two ends of a measurement.
    pub fn ends(&self, variant: Variant, class: Class) -> (Endpoint, Server) {
        let [from, to] = self.nodes(variant);
        let host = |node: &Node, address| Endpoint {
            name: node.name(),
            // The mount namespace is left out, because sockets need only the network namespace.
            namespace: Namespace::new(node.namespace().name())
                .in_group(self.lab.control_group(node.number())),
            address,
        };
        let Some([first, second]) = self.pods.get(&variant) else {
            let [a, b] = CABLE_ADDRESSES;
            return (host(&from, a), host(&to, b).into());
        };
        let behind = |pod: &Endpoint, address: Ipv4Addr, port: u16| Server {
            endpoint: pod.clone(),
            port: TARGET_PORT,
            service: Some(SocketAddr::from((address, port))),
        };
        let any = Ipv4Addr::UNSPECIFIED;
        match class {
            Class::Direct => (first[0].clone(), second[0].clone().into()),
            Class::Local => (first[0].clone(), first[1].clone().into()),
            Class::Node => (host(&from, any), second[0].clone().into()),
            Class::Service => {
                let server = behind(&second[0], service_address(class), PORT);
                (first[0].clone(), server)
            }
            Class::LocalService => {
                let server = behind(&first[1], service_address(class), PORT);
                (first[0].clone(), server)
            }
            // The second node sends the packets back over the overlay, to a pod of the first.
            Class::NodePort => {
                let server = behind(&first[0], CABLE_ADDRESSES[1], NODE_PORT);
                (host(&from, any), server)
            }
        }
    }
}

/// The address of the Service that a class measures.
fn service_address(class: Class) -> Ipv4Addr {
    Ipv4Addr::new(10, 97, 0, 1 + class as u8)
}

/// Removes our guard of the kernel path from a node, because flannel has no guard, and must not pay
/// its cost.
fn remove_guard(node: &Node) -> Result<()> {
    let listed = node.run(["nft", "list", "tables"])?;
    for line in listed.lines().filter(|line| line.contains("overlay")) {
        let mut words = vec!["nft", "delete"];
        words.extend(line.split_whitespace());
        node.run(words)?;
    }
    Ok(())
}

/// Sets the congestion control that every kernel allows in the calling thread's network namespace.
/// Where the machine uses another one, such as BBR, its pacing would be measured instead of the
/// path.
fn set_congestion_control() -> Result<()> {
    const FILE: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
    fs::write(Path::new(FILE), "reno").with_context(|| format!("write {FILE}"))
}

/// The ends of every cable; each pair of nodes is a network of its own.
const CABLE_ADDRESSES: [Ipv4Addr; 2] = [
    Ipv4Addr::new(192, 168, 67, 1),
    Ipv4Addr::new(192, 168, 67, 2),
];
