//! The state of a node's overlay, read from the kernel: maps, links, counters. No agent needs to run.

mod filters;
mod text;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use overlay_common::schema::{ABI_VERSION, CONFIG_ACTIVE, CONFIG_PEERS_COMPLETE, POD_KERNEL_PATH};
use overlay_common::verdict::Kind;
use overlay_common::{Hook, V4, Verdict};
use serde::Serialize;

pub use text::render;

use super::agent_file::{AgentFile, AgentLock, RejectedLease};
use crate::backend;
use crate::config::net_conf::DEFAULT_VNI;
use crate::config::subnet_env::{self, SubnetEnv};
use crate::datapath::family::UserFamily as _;
use crate::datapath::maps::Maps;
use crate::datapath::pins::Pins;
use crate::datapath::programs::{self, OnHook};
use crate::kernel::pods::BRIDGE;
use crate::kernel::{self, Kernel, guard};
use crate::mac::MacAddr;
use crate::privilege::{self, Capability};
use crate::reconcile::{Observed, ROUTE_PROTOCOL};
use overlay_common::snapshot::Snapshot;

/// Everything `overlayctl status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The agent.
    pub agent: Agent,
    /// This node; absent before an agent has had a lease.
    pub node: Option<Node>,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// The pods of this node.
    pub pods: Vec<Pod>,
    /// Our programs on their hooks, and those of others beside them.
    pub attachments: Vec<Attachment>,
    /// What the fast path has done.
    pub fast_path: FastPath,
    /// Where hostile VXLAN is refused early (XDP), or why nowhere; as of the last agent.
    pub early_refusal: Option<String>,
    /// Where the eBPF programs are from (`--programs`); absent where they are the agent's own. As of the last agent.
    pub foreign_programs: Option<String>,
    /// Foreign packet-filter rules on the kernel path, and what follows; as of the last agent.
    pub network_policies: Option<String>,
    /// Packets left to the kernel although the fast path serves such packets in principle, by cause.
    pub slow_path: BTreeMap<&'static str, u64>,
    /// Packets dropped because they forge something, by reason, on both paths.
    pub refused: BTreeMap<&'static str, Refused>,
    /// Leases that the agent does not believe, and why; as of the last agent.
    pub rejected: Vec<RejectedLease>,
    /// Peers that do not answer over the kernel path: down, or behind a firewall; as of the last agent.
    pub unreachable: Vec<backend::Peer>,
    /// Why TCP connections that leave the fast path may be lost, if so.
    pub tcp_pick_up: Option<&'static str>,
    /// Why no peer is asked for an answer, if so.
    pub unchecked: Option<String>,
    /// What is pinned of the data path.
    pub abi: Abi,
    /// What could not be read, and why.
    pub problems: Vec<String>,
}

/// The agent.
#[derive(Clone, Debug, Serialize)]
pub struct Agent {
    /// Whether it runs.
    pub running: bool,
    /// Its process, or that of the last one.
    pub pid: Option<u32>,
}

/// Versions of the maps' layout.
#[derive(Clone, Debug, Serialize)]
pub struct Abi {
    /// The one that this build reads.
    pub own: u32,
    /// Those that agents have pinned something of.
    pub pinned: Vec<u32>,
}

impl Abi {
    /// Why this build sees nothing of what is pinned, if so.
    fn problem(&self) -> Option<String> {
        if self.pinned.is_empty() || self.pinned.contains(&self.own) {
            return None;
        }
        let pinned: Vec<_> = self.pinned.iter().map(u32::to_string).collect();
        Some(format!(
            "the pinned maps are of ABI version {}, and this overlayctl reads version {}: use the \
             one that came with the agent",
            pinned.join(" and "),
            self.own
        ))
    }
}

/// This node.
#[derive(Clone, Debug, Serialize)]
pub struct Node {
    /// The whole overlay.
    pub network: String,
    /// This node's lease.
    pub subnet: String,
    /// Its underlay address.
    pub vtep: IpAddr,
    /// MAC address of the VXLAN device.
    pub vtep_mac: MacAddr,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub port: u16,
}

/// Another node's subnet.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    /// The subnet.
    pub subnet: String,
    /// The node's underlay address.
    pub vtep: IpAddr,
    /// MAC address of its VXLAN device.
    pub mac: MacAddr,
    /// Longest inner packet on the fast path; absent where only the kernel path reaches it.
    pub mtu: Option<u32>,
}

/// A pod of this node.
#[derive(Clone, Debug, Serialize)]
pub struct Pod {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The host end of its veth pair.
    pub device: String,
    /// The runtime's name for the container.
    pub container: String,
    /// `fast`, `kernel` where something on its veth forbids short cuts, `unknown` where no agent has seen it.
    pub path: &'static str,
}

/// A hook and what sits on it.
#[derive(Clone, Debug, Serialize)]
pub struct Attachment {
    /// The hook.
    pub hook: &'static str,
    /// The device.
    pub device: String,
    /// The programs, in the order they run.
    pub programs: Vec<OnHook>,
}

/// What the fast path has done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FastPath {
    /// `active`, `inactive` (loaded, everything left to the kernel) or `absent`.
    pub state: &'static str,
    /// Whether every lease is known to it.
    pub complete: bool,
    /// Share of pod-to-pod packets that took it, 0 to 1; absent before there were any.
    pub hit_ratio: Option<f64>,
    /// Packets handed from pod to pod on this node.
    pub redirected: u64,
    /// Packets encapsulated.
    pub encapsulated: u64,
    /// Packets decapsulated.
    pub decapsulated: u64,
    /// Packets that it should have carried and left to the kernel.
    pub slow: u64,
    /// Packets lost half-way.
    pub failed: u64,
    /// Flows that the IP stack owns.
    pub stack_owned_flows: usize,
}

/// Refused packets.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Refused {
    /// By the programs.
    pub fast_path: u64,
    /// By the packet filter.
    pub kernel_path: u64,
}

/// Looks at this node.
pub async fn collect(pins: &Pins, run_dir: &Path) -> Status {
    let mut status = Status {
        agent: Agent {
            running: false,
            pid: None,
        },
        node: None,
        peers: Vec::new(),
        pods: Vec::new(),
        attachments: Vec::new(),
        fast_path: FastPath {
            state: "absent",
            ..FastPath::default()
        },
        early_refusal: None,
        foreign_programs: None,
        network_policies: None,
        slow_path: BTreeMap::new(),
        refused: BTreeMap::new(),
        rejected: Vec::new(),
        unreachable: Vec::new(),
        tcp_pick_up: kernel::sysctl::no_tcp_pick_up(),
        unchecked: None,
        abi: Abi {
            own: ABI_VERSION,
            pinned: Vec::new(),
        },
        problems: Vec::new(),
    };
    match pins.versions() {
        Ok(versions) => status.abi.pinned = versions,
        Err(error) => status.problems.push(error.to_string()),
    }
    status.problems.extend(status.abi.problem());
    let needed = [Capability::NetAdmin, Capability::SysAdmin];
    if let Some(missing) = privilege::missing(&needed) {
        let text = format!("this process lacks {missing}, and cannot see everything");
        status.problems.push(text);
    }
    let (mut device, mut subnet_file) = (None, PathBuf::from(subnet_env::DEFAULT_PATH));
    match AgentFile::read(run_dir) {
        Ok(Some(agent)) => {
            status.agent = Agent {
                running: AgentLock::is_held(run_dir),
                pid: Some(agent.pid),
            };
            device = Some(agent.device);
            subnet_file = agent.subnet_file;
            status.rejected = agent.rejected;
            status.early_refusal = agent.early_refusal;
            status.foreign_programs = agent.foreign_programs;
            status.network_policies = agent.network_policies;
            status.unreachable = agent.unreachable;
            status.unchecked = agent.unchecked;
        }
        Ok(None) => {}
        Err(error) => status.problems.push(error.to_string()),
    }
    let mut tables = Snapshot::default();
    if pins.exist() {
        match Maps::<V4>::open(pins).and_then(|maps| Ok((maps.dump()?, maps.counters()?))) {
            Ok((dumped, counters)) => {
                status.count(&counters);
                tables = dumped;
            }
            Err(error) => status.problems.push(error.to_string()),
        }
    }
    status.describe(&tables);
    let vni = tables.config.map_or(DEFAULT_VNI, |config| config.vni);
    let device = device.unwrap_or_else(|| format!("flannel.{vni}"));
    if let Err(error) = status
        .look_at_kernel(pins, &tables, &device, &subnet_file)
        .await
    {
        status.problems.push(error.to_string());
    }
    match guard::counters().await {
        Ok(counters) => {
            for (reason, packets) in counters.0.iter().filter(|(_, packets)| **packets > 0) {
                status.refused.entry(reason.name()).or_default().kernel_path = *packets;
            }
        }
        Err(error) => status.problems.push(error.to_string()),
    }
    status
}

impl Status {
    fn count(&mut self, counters: &[(Hook, Verdict, overlay_common::schema::Counter)]) {
        let fast_path = &mut self.fast_path;
        for (hook, verdict, counter) in counters {
            let packets = counter.packets;
            match verdict {
                Verdict::Redirected => fast_path.redirected += packets,
                Verdict::Encapsulated => fast_path.encapsulated += packets,
                Verdict::Decapsulated => fast_path.decapsulated += packets,
                _ => {}
            }
            // What leaves by the stack has been counted where it came in.
            let came_in = matches!(hook, Hook::PodIn | Hook::NetIn);
            match verdict.kind() {
                Kind::Slow if came_in => {
                    fast_path.slow += packets;
                    *self.slow_path.entry(verdict.name()).or_default() += packets;
                }
                Kind::Refused => {
                    self.refused.entry(verdict.name()).or_default().fast_path += packets
                }
                Kind::Failed => fast_path.failed += packets,
                _ => {}
            }
        }
        let fast = fast_path.redirected + fast_path.encapsulated + fast_path.decapsulated;
        let all = fast + fast_path.slow + fast_path.failed;
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        {
            fast_path.hit_ratio = (all > 0).then(|| fast as f64 / all as f64);
        }
    }

    fn describe(&mut self, tables: &Snapshot<V4>) {
        let Some(config) = tables.config else {
            return;
        };
        let net = |address, mask| format!("{}/{}", V4::to_ip(address), V4::prefix_len(mask));
        self.node = Some(Node {
            network: net(config.network, config.network_mask),
            subnet: net(config.subnet, config.subnet_mask),
            vtep: V4::to_ip(config.vtep),
            vtep_mac: MacAddr(config.vtep_mac),
            vni: config.vni,
            port: config.port,
        });
        self.fast_path.state = if config.flags & CONFIG_ACTIVE != 0 {
            "active"
        } else {
            "inactive"
        };
        self.fast_path.complete = config.flags & CONFIG_PEERS_COMPLETE != 0;
        self.fast_path.stack_owned_flows = tables.flows.len();
    }

    /// The overlay's network; without a fast path the agent's file for the CNI plugin tells.
    fn network(&mut self, tables: &Snapshot<V4>, subnet_file: &Path) -> Option<IpNet> {
        if let Some(config) = tables.config {
            let len = V4::prefix_len(config.network_mask);
            return IpNet::new(V4::to_ip(config.network), len).ok();
        }
        let env = SubnetEnv::read(subnet_file).ok()?;
        let network = *env.networks.first()?;
        self.node = Some(Node {
            network: network.to_string(),
            subnet: env.subnet?.trunc().to_string(),
            vtep: Ipv4Addr::UNSPECIFIED.into(),
            vtep_mac: MacAddr::default(),
            vni: 0,
            port: 0,
        });
        Some(network)
    }

    async fn look_at_kernel(
        &mut self,
        pins: &Pins,
        tables: &Snapshot<V4>,
        device: &str,
        subnet_file: &Path,
    ) -> Result<(), kernel::Error> {
        let kernel = Kernel::connect()?;
        let pods = kernel.pods(BRIDGE).await?;
        for pod in &pods.pods {
            let path = match tables.endpoints.get(&pod.ifindex) {
                Some(endpoint) if endpoint.flags & POD_KERNEL_PATH != 0 => "kernel",
                Some(_) if self.fast_path.state == "active" => "fast",
                Some(_) => "kernel",
                None => "unknown",
            };
            self.pods.push(Pod {
                address: pod.note.address,
                mac: pod.pod_mac,
                device: pod.name.clone(),
                container: pod.note.container.clone(),
                path,
            });
        }
        if let Some(network) = self.network(tables, subnet_file) {
            let observed = kernel.observe(device, network).await?;
            self.peers = peers(&observed, tables);
            if let (Some(node), Some(found)) = (&mut self.node, &observed.device) {
                node.vtep_mac = found.mac;
                if let Some(vxlan) = &found.vxlan {
                    (node.vni, node.port) = (vxlan.vni, vxlan.port);
                    node.vtep = vxlan.local.unwrap_or(node.vtep);
                }
            }
        }
        for (hook, ifindex, path) in pins.list_links().unwrap_or_default() {
            let Some((device, _)) = kernel.device(ifindex).await? else {
                self.problems.push(format!(
                    "{} is pinned for a device that is gone",
                    path.display()
                ));
                continue;
            };
            let there = match hook {
                Hook::NetXdp => programs::on_link(&path).map(|program| vec![program]),
                _ => programs::on_hook(hook, &device),
            };
            match there {
                Ok(programs) => self.attachments.push(Attachment {
                    hook: hook.name(),
                    device,
                    programs,
                }),
                Err(error) => self.problems.push(error.to_string()),
            }
        }
        self.attachments
            .extend(filters::attachments(&kernel).await?);
        self.attachments
            .sort_by(|a, b| (&a.device, a.hook).cmp(&(&b.device, b.hook)));
        Ok(())
    }
}

/// The other nodes: those that the kernel has routes to, and how the fast path reaches them.
fn peers(observed: &Observed, tables: &Snapshot<V4>) -> Vec<Peer> {
    let ours = observed
        .routes
        .iter()
        .filter(|route| route.protocol == ROUTE_PROTOCOL);
    let mut peers: Vec<Peer> = ours
        .filter_map(|route| {
            let mac = *observed.neighbours.get(&route.gateway?)?;
            let vtep = *observed.fdb.get(&mac)?;
            let key = V4::from_ip(route.subnet.network())?;
            let entry = tables
                .peers
                .get(&key)
                .filter(|entry| V4::to_ip(entry.vtep) == vtep);
            let subnet = route.subnet.to_string();
            Some(Peer {
                subnet,
                vtep,
                mac,
                mtu: entry.map(|entry| entry.mtu),
            })
        })
        .collect();
    peers.sort_by(|a, b| a.subnet.cmp(&b.subnet));
    peers
}
