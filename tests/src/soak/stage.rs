//! The stage of a soak: the lab, its Services, and the connections that are kept open.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::leases;
use crate::conversation::{Conversation, Server, Transport};
use crate::kube_proxy::{self, Service};
use crate::pace::Traffic;
use crate::traffic::Endpoint;
use crate::{Lab, Node, Options, Pod, fast_path};

/// Number of permanent pods of a node.
pub const PODS: usize = 2;
/// The port that backends serve, and that of the Services.
const PORT: u16 = 8080;
const SERVICE_PORT: u16 = 80;
/// Timeouts of connection tracking in seconds, short so that ended connections are forgotten before
/// the end of the run. The timeouts of datagrams are longer than any silence within a conversation.
const TIMEOUTS: &[(&str, u32)] = &[
    ("tcp_timeout_fin_wait", 5),
    ("tcp_timeout_close_wait", 5),
    ("tcp_timeout_last_ack", 5),
    ("tcp_timeout_time_wait", 5),
    ("tcp_timeout_close", 5),
    ("tcp_timeout_max_retrans", 20),
    // This is for connections that the fast path took over between data and its acknowledgement.
    ("tcp_timeout_unacknowledged", 20),
    ("udp_timeout", 10),
    ("udp_timeout_stream", 20),
    ("icmp_timeout", 5),
    // This is for IGMP, which devices send when they come up.
    ("generic_timeout", 5),
];

pub struct Stage {
    pub lab: Lab,
    services: Vec<SocketAddrV4>,
    servers: Vec<(Transport, Server)>,
    companions: Vec<Companion>,
}

/// A connection that is kept open.
struct Companion {
    what: String,
    from: Pod,
    target: SocketAddrV4,
    conversation: Conversation,
}

impl Stage {
    pub fn up() -> Result<Self> {
        let lab = Lab::up(Options {
            nodes: 3,
            pods: PODS,
            // The invented nodes have their subnets above these.
            network: json!({
                "Network": "10.244.0.0/16",
                "SubnetMin": "10.244.1.0",
                "SubnetMax": "10.244.9.0",
                "Backend": {"Type": "vxlan"}
            }),
            ..Options::for_test("soak")
        })?;
        let backends = [lab.pod(1, 2), lab.pod(2, 1)];
        let addresses = backends
            .each_ref()
            .map(|pod| SocketAddrV4::new(pod.address(), PORT));
        let service = |name, last, backend| Service {
            name,
            address: SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, last), SERVICE_PORT),
            backends: vec![backend],
            node_port: None,
            local_only: false,
            masquerade_all: false,
        };
        let [near, far] = addresses;
        let services = [service("NEAR", 1, near), service("FAR", 2, far)];
        for node in lab.nodes() {
            node.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"])?;
            for (name, seconds) in TIMEOUTS {
                let setting = format!("net.netfilter.nf_conntrack_{name}={seconds}");
                node.run(["sysctl", "-qw", &setting])?;
            }
            kube_proxy::serve(&node, "10.244.0.0/16".parse()?, &services)?;
            fast_path::wait_serving(&node)?;
        }
        give_qdiscs(&lab.node(1))?;
        let mut servers = Vec::new();
        for (pod, address) in backends.iter().zip(addresses) {
            for transport in Transport::ALL {
                let server = Server::open(&pod.namespace(), transport, address)?;
                servers.push((transport, server));
            }
        }
        let mut stage = Self {
            lab,
            services: services.iter().map(|service| service.address).collect(),
            servers,
            companions: Vec::new(),
        };
        let callers = [stage.lab.pod(1, 1), stage.lab.pod(2, 2)];
        let targets = stage.services.iter().copied().chain(addresses);
        for target in targets.collect::<Vec<_>>() {
            for from in &callers {
                let conversation = stage.call(from, target, Transport::Tcp)?;
                stage.companions.push(Companion {
                    what: format!("the connection of {} to {target}", from.name()),
                    from: from.clone(),
                    target,
                    conversation,
                });
            }
        }
        let broken = stage.speak()?;
        ensure!(broken.is_empty(), "{}", broken.join("; "));
        Ok(stage)
    }

    /// The addresses of the Services: one is served on node 1, one on node 2.
    pub fn services(&self) -> &[SocketAddrV4] {
        &self.services
    }

    /// Opens a conversation with the server behind `target`.
    pub fn call(
        &self,
        from: &Pod,
        target: SocketAddrV4,
        transport: Transport,
    ) -> Result<Conversation> {
        let servers = self.servers.iter();
        let servers: Vec<Server> = servers
            .filter(|(of, _)| *of == transport)
            .map(|(_, server)| server.clone())
            .collect();
        Conversation::open(&from.namespace(), transport, target, &servers)
            .with_context(|| format!("{transport} from {} to {target}", from.name()))
    }

    /// Traffic between the nodes and within one, with the names of its ends.
    pub fn traffic(&self) -> Result<Vec<(String, Traffic)>> {
        let pairs = [
            (self.lab.pod(1, 1), self.lab.pod(2, 1)),
            (self.lab.pod(1, 1), self.lab.pod(1, 2)),
        ];
        let start = |(a, b): &(Pod, Pod)| {
            let pair = format!("{} and {}", a.name(), b.name());
            let traffic = Traffic::start(&endpoint(a), &endpoint(b));
            Ok((pair.clone(), traffic.context(pair)?))
        };
        pairs.iter().map(start).collect()
    }

    /// Sends in both directions on every kept connection. A broken one is opened again; returns the
    /// names of the broken ones.
    pub fn speak(&mut self) -> Result<Vec<String>> {
        let mut broken = Vec::new();
        for i in 0..self.companions.len() {
            let Companion {
                what,
                from,
                target,
                conversation,
            } = &self.companions[i];
            let spoken = conversation
                .server_speaks()
                .and_then(|()| conversation.client_speaks());
            if let Err(error) = spoken {
                broken.push(format!("{what} broke: {error:#}"));
                let anew = self.call(from, *target, Transport::Tcp)?;
                self.companions[i].conversation = anew;
            }
        }
        Ok(broken)
    }

    /// How many connections are kept.
    pub fn companions(&self) -> usize {
        self.companions.len()
    }

    /// Restores the lab after a failed round: every agent runs, and all objects of the round are
    /// removed.
    pub fn restore(&mut self) -> Result<()> {
        leases::delete_all(&self.lab)?;
        for node in self.lab.nodes() {
            if !node.agent().is_some_and(|agent| agent.is_alive()) {
                node.start_agent_unready(&[])?;
            }
            for pod in node.pods().into_iter().skip(PODS) {
                pod.remove()?;
            }
            node.collect_garbage()?;
        }
        self.lab.wait_converged()
    }

    /// Takes the lab down.
    pub fn down(self) -> Result<()> {
        self.lab.down()
    }
}

/// Gives every device the qdisc that filters of clsact need, before there is traffic. While Linux
/// adds the qdisc to a device that is up, the device loses packets (`dev_deactivate()` in
/// `qdisc_graft()`), whichever process adds it.
fn give_qdiscs(node: &Node) -> Result<()> {
    let script = "for device in $(ls /sys/class/net); do
                      tc qdisc add dev $device clsact || exit
                  done";
    node.run(["sh", "-c", script]).map(drop)
}

pub fn endpoint(pod: &Pod) -> Endpoint {
    Endpoint {
        name: pod.name().to_owned(),
        namespace: pod.namespace(),
        address: pod.address(),
    }
}
