//! The state of a node's overlay, read from the kernel: maps, links, counters. No agent needs to
//! run.

mod filters;
mod text;
mod view;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use overlay_common::schema::{ABI_VERSION, CONFIG_ACTIVE, CONFIG_PEERS_COMPLETE, POD_KERNEL_PATH};
use overlay_common::verdict::Kind;
use overlay_common::{Hook, V4, Verdict};

pub use text::render;
pub use view::{
    AbiView, AgentView, FastPathView, HookView, NodeView, PeerView, PodView, RefusedView,
    ServicesView, Status,
};

use super::agent_file::{AgentFile, AgentLock};
use crate::config::net_conf::DEFAULT_VNI;
use crate::config::subnet_env::{self, SubnetEnv};
use crate::datapath::family::UserFamily as _;
use crate::datapath::maps::Maps;
use crate::datapath::pins::Pins;
use crate::datapath::{programs, services};
use crate::kernel::{self, Kernel, guard};
use crate::mac::MacAddr;
use crate::marks::{BRIDGE, ROUTE_PROTOCOL};
use crate::privilege::{self, Capability};
use crate::reconcile::KernelState;
use overlay_common::snapshot::Snapshot;

/// Reads the state of this node. What cannot be read is listed in [`Status::problems`].
pub async fn collect(pins: &Pins, run_dir: &Path) -> Status {
    let mut status = Status::unseen();
    match pins.versions() {
        Ok(versions) => status.abi.pinned = versions,
        Err(error) => status.problems.push(error.to_string()),
    }
    status.problems.extend(status.abi.problem());
    let needed = [Capability::NetAdmin, Capability::Bpf];
    if let Some(missing) = privilege::missing(&needed) {
        let text = format!("this process lacks {missing}, and cannot see everything");
        status.problems.push(text);
    }
    let (mut device, mut subnet_file) = (None, PathBuf::from(subnet_env::DEFAULT_PATH));
    match AgentFile::read(run_dir) {
        Ok(Some(agent)) => {
            status.agent = AgentView {
                running: AgentLock::is_held(run_dir),
                pid: Some(agent.pid),
            };
            device = Some(agent.device.clone());
            subnet_file.clone_from(&agent.subnet_file);
            status.hear(agent);
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
    for (operation, verdict, times) in services::counters(pins).unwrap_or_default() {
        let of_operation = status.services.sockets.entry(operation.name()).or_default();
        of_operation.insert(verdict.name(), times);
    }
    status.describe(&tables);
    let vni = tables.config.map_or(DEFAULT_VNI, |config| config.vni);
    let device = device.unwrap_or_else(|| Some(format!("flannel.{vni}")));
    if let Err(error) = status
        .look_at_kernel(pins, &tables, device.as_deref(), &subnet_file)
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
    /// The status of a node of which nothing has been read yet.
    fn unseen() -> Self {
        Self {
            agent: AgentView {
                running: false,
                pid: None,
            },
            node: None,
            peers: Vec::new(),
            pods: Vec::new(),
            attachments: Vec::new(),
            fast_path: FastPathView {
                state: "absent",
                ..FastPathView::default()
            },
            early_refusal: None,
            foreign_programs: None,
            network_policies: None,
            leases_as_of: None,
            services: ServicesView::default(),
            slow_path: BTreeMap::new(),
            refused: BTreeMap::new(),
            rejected: Vec::new(),
            unreachable: Vec::new(),
            tcp_pick_up: kernel::sysctl::no_tcp_pick_up(),
            unchecked: None,
            abi: AbiView {
                own: ABI_VERSION,
                pinned: Vec::new(),
            },
            problems: Vec::new(),
        }
    }

    /// Adds the content of the agent's note to the status.
    fn hear(&mut self, agent: AgentFile) {
        self.leases_as_of = agent.leases_as_of;
        self.rejected = agent.rejected;
        self.early_refusal = agent.early_refusal;
        self.foreign_programs = agent.foreign_programs;
        self.network_policies = agent.network_policies;
        self.services.by = agent.services;
        self.services.refused = agent.refused_services;
        self.unreachable = agent.unreachable;
        self.unchecked = agent.unchecked;
    }

    fn count(&mut self, counters: &[(Hook, Verdict, overlay_common::schema::Counter)]) {
        let fast_path = &mut self.fast_path;
        for (hook, verdict, counter) in counters {
            let packets = counter.packets;
            match verdict {
                Verdict::Redirected => fast_path.redirected += packets,
                Verdict::Routed => fast_path.routed += packets,
                Verdict::Encapsulated => fast_path.encapsulated += packets,
                Verdict::Decapsulated => fast_path.decapsulated += packets,
                _ => {}
            }
            // A packet that leaves by the stack has been counted where it came in.
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
        let fast = fast_path.redirected
            + fast_path.routed
            + fast_path.encapsulated
            + fast_path.decapsulated;
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
        self.node = Some(NodeView {
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
        let nets = env.nets.first();
        let network = *nets.networks.first()?;
        self.node = Some(NodeView {
            network: network.to_string(),
            subnet: nets.subnet.trunc().to_string(),
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
        device: Option<&str>,
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
            self.pods.push(PodView {
                address: *pod.note.addresses.first(),
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
                Hook::NetXdp => programs::on_link(hook, &path).map(|program| vec![program]),
                _ => programs::on_hook(hook, &device, ifindex, &path),
            };
            match there {
                Ok(programs) => self.attachments.push(HookView {
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
fn peers(observed: &KernelState, tables: &Snapshot<V4>) -> Vec<PeerView> {
    let ours = observed
        .routes
        .iter()
        .filter(|route| route.protocol == ROUTE_PROTOCOL);
    let mut peers: Vec<PeerView> = ours
        .filter_map(|route| {
            let gateway = route.gateway?;
            let mac = observed.neighbours.get(&gateway).copied();
            let (way, vtep) = match mac {
                Some(mac) => ("vxlan", *observed.fdb.get(&mac)?),
                None if route.onlink => return None,
                None => ("direct", gateway),
            };
            let key = V4::from_ip(route.subnet.network())?;
            let entry = tables
                .peers
                .get(&key)
                .filter(|entry| V4::to_ip(entry.vtep) == vtep);
            let subnet = route.subnet.to_string();
            Some(PeerView {
                subnet,
                vtep,
                way,
                mac,
                mtu: entry.map(|entry| entry.mtu),
            })
        })
        .collect();
    peers.sort_by(|a, b| a.subnet.cmp(&b.subnet));
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_has_noted_is_shown() {
        let note = br#"{
            "pid": 7, "device": null, "health": null, "subnet_file": "/run/flannel/subnet.env",
            "leases_as_of": "2023-11-14T22:13:20Z", "unchecked": "no socket",
            "early_refusal": "nowhere", "foreign_programs": "those of a file",
            "network_policies": "2 chains", "services": "by kube-proxy: off",
            "rejected": [{"subject": "10.9.0.0-24", "reason": "it is odd"}],
            "refused_services": {
                "told": [{"subject": "Service a/b", "reasons": ["odd, too"]}], "more": 0
            },
            "unreachable": [
                {"subnet": "10.244.9.0/24", "vtep": "192.0.2.9", "way": "direct"}
            ]
        }"#;
        let mut status = Status::unseen();
        status.hear(AgentFile::parse(note).expect("a note"));
        // Whatever the columns' widths are.
        let lines = render(&status);
        let text: Vec<_> = lines.split_whitespace().collect();
        let text = text.join(" ");
        for words in [
            "as known at 2023-11-14T22:13:20Z: the store has not answered since the agent started",
            "kernel paths to peers not checked: no socket",
            "early refusal nowhere",
            "programs those of a file",
            "policies 2 chains",
            "services by kube-proxy: off",
            "10.9.0.0-24 it is odd",
            "Service a/b odd, too",
            "1 peers give no answer over the kernel path",
            "10.244.9.0/24 192.0.2.9",
        ] {
            assert!(text.contains(words), "{words:?} not in\n{text}");
        }
    }
}
