//! Packets and tables as readable files: what once showed a difference is replayed in every test.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use overlay_common::V4;
use overlay_common::schema::{ABI_VERSION, Config, Endpoint, FlowKey, PeerEntry, PodEntry, Vtep};
use overlay_user::mac::MacAddr;
use serde::{Deserialize, Serialize};

use crate::expected::hex;
use overlay_cases::world::{NIC_MAC, World};
use overlay_common::visit::Visit;

mod packet;

pub use packet::PacketText;
use packet::{bytes, is_zero};

/// Tables and the packets that meet them, in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// Why it is kept.
    pub note: String,
    /// The packets.
    pub packets: Vec<PacketText>,
    /// The tables.
    pub tables: TablesText,
}

fn underlay_mac() -> MacAddr {
    MacAddr(NIC_MAC)
}

fn is_false(truth: &bool) -> bool {
    !truth
}

fn nowhere() -> Ipv4Addr {
    Ipv4Addr::UNSPECIFIED
}

/// See [`World`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TablesText {
    config: Option<ConfigText>,
    endpoints: BTreeMap<u32, EndpointText>,
    pods: BTreeMap<Ipv4Addr, PodText>,
    peers: BTreeMap<Ipv4Addr, PeerText>,
    vteps: BTreeMap<Ipv4Addr, u32>,
    flows: Vec<FlowText>,
    #[serde(default, skip_serializing_if = "is_false")]
    leases_are_stale: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigText {
    flags: u32,
    underlay_interface: u32,
    #[serde(default)]
    vtep_interface: u32,
    vni: u32,
    network: (Ipv4Addr, Ipv4Addr),
    subnet: (Ipv4Addr, Ipv4Addr),
    /// Absent in recordings from before there was such a field.
    #[serde(default = "nowhere")]
    gateway: Ipv4Addr,
    peer_mask: Ipv4Addr,
    vtep: Ipv4Addr,
    vtep_mac: MacAddr,
    /// Absent in recordings from before there was such a field.
    #[serde(default = "underlay_mac")]
    underlay_mac: MacAddr,
    bridge_mac: MacAddr,
    port: u16,
    source_ports: (u16, u16),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointText {
    address: Ipv4Addr,
    /// In the other places, where they hold anything else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    others: Vec<Ipv4Addr>,
    mac: MacAddr,
    flags: u16,
    #[serde(default, skip_serializing_if = "is_zero")]
    owner: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PodText {
    interface: u32,
    mtu: u32,
    mac: MacAddr,
    flags: u16,
    #[serde(default, skip_serializing_if = "is_zero")]
    owner: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerText {
    vtep: Ipv4Addr,
    mtu: u32,
    flags: u32,
    header: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowText {
    low: (Ipv4Addr, u16),
    high: (Ipv4Addr, u16),
    protocol: u32,
}

impl Recording {
    /// Writes down packets and tables.
    pub fn of(note: &str, world: &World, visits: &[Visit]) -> Self {
        Self {
            note: note.to_owned(),
            packets: visits.iter().map(PacketText::of).collect(),
            tables: TablesText::of(world),
        }
    }

    /// The tables.
    ///
    /// # Errors
    /// When a field holds what no table can.
    pub fn world(&self) -> Result<World> {
        self.tables.world()
    }

    /// The packets.
    ///
    /// # Errors
    /// When a field holds what no packet can.
    pub fn visits(&self) -> Result<Vec<Visit>> {
        self.packets.iter().map(PacketText::visit).collect()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or holds something else.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}

/// Every recording in a directory, by file; none where there is no directory.
///
/// # Errors
/// When a file cannot be read.
pub fn all(directory: &Path) -> Result<BTreeMap<PathBuf, Recording>> {
    if !directory.exists() {
        return Ok(BTreeMap::new());
    }
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut found = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            found.insert(path.clone(), Recording::load(&path)?);
        }
    }
    Ok(found)
}

impl TablesText {
    fn of(world: &World) -> Self {
        let config = world.config.map(|config| ConfigText {
            flags: config.flags,
            underlay_interface: config.underlay_ifindex,
            vtep_interface: config.vtep_ifindex,
            vni: config.vni,
            network: (config.network.into(), config.network_mask.into()),
            subnet: (config.subnet.into(), config.subnet_mask.into()),
            gateway: config.gateway.into(),
            peer_mask: config.peer_mask.into(),
            vtep: config.vtep.into(),
            vtep_mac: MacAddr(config.vtep_mac),
            underlay_mac: MacAddr(config.underlay_mac),
            bridge_mac: MacAddr(config.bridge_mac),
            port: config.port,
            source_ports: (config.source_port_min, config.source_port_count),
        });
        let endpoint = |(ifindex, endpoint): (&u32, &Endpoint<V4>)| {
            let text = EndpointText {
                address: endpoint.addresses[0].into(),
                others: others(endpoint),
                mac: MacAddr(endpoint.mac),
                flags: endpoint.flags,
                owner: endpoint.owner,
            };
            (*ifindex, text)
        };
        let pod = |(address, pod): (&[u8; 4], &PodEntry)| {
            let text = PodText {
                interface: pod.ifindex,
                mtu: pod.mtu,
                mac: MacAddr(pod.mac),
                flags: pod.flags,
                owner: pod.owner,
            };
            (Ipv4Addr::from(*address), text)
        };
        let peer = |(subnet, peer): (&[u8; 4], &PeerEntry<V4>)| {
            let text = PeerText {
                vtep: peer.vtep.into(),
                mtu: peer.mtu,
                flags: peer.flags,
                header: hex(&peer.header),
            };
            (Ipv4Addr::from(*subnet), text)
        };
        let vtep = |(address, vtep): (&[u8; 4], &Vtep)| (Ipv4Addr::from(*address), vtep.subnets);
        let flow = |flow: &FlowKey<V4>| FlowText {
            low: (flow.low.into(), flow.low_port),
            high: (flow.high.into(), flow.high_port),
            protocol: flow.protocol,
        };
        Self {
            config,
            endpoints: world.endpoints.iter().map(endpoint).collect(),
            pods: world.pods.iter().map(pod).collect(),
            peers: world.peers.iter().map(peer).collect(),
            vteps: world.vteps.iter().map(vtep).collect(),
            flows: world.flows.iter().map(flow).collect(),
            leases_are_stale: world.leases_are_stale,
        }
    }

    fn world(&self) -> Result<World> {
        let config = self.config.as_ref().map(|config| Config {
            abi: ABI_VERSION,
            flags: config.flags,
            underlay_ifindex: config.underlay_interface,
            vtep_ifindex: config.vtep_interface,
            vni: config.vni,
            network: config.network.0.octets(),
            network_mask: config.network.1.octets(),
            subnet: config.subnet.0.octets(),
            subnet_mask: config.subnet.1.octets(),
            gateway: config.gateway.octets(),
            peer_mask: config.peer_mask.octets(),
            vtep: config.vtep.octets(),
            vtep_mac: config.vtep_mac.0,
            bridge_mac: config.bridge_mac.0,
            port: config.port,
            source_port_min: config.source_ports.0,
            source_port_count: config.source_ports.1,
            underlay_mac: config.underlay_mac.0,
        });
        let endpoint = |(ifindex, text): (&u32, &EndpointText)| {
            let endpoint = Endpoint {
                addresses: std::array::from_fn(|place| {
                    let other = place
                        .checked_sub(1)
                        .and_then(|other| text.others.get(other));
                    other.unwrap_or(&text.address).octets()
                }),
                mac: text.mac.0,
                flags: text.flags,
                owner: text.owner,
            };
            (*ifindex, endpoint)
        };
        let pod = |(address, text): (&Ipv4Addr, &PodText)| {
            let pod = PodEntry {
                ifindex: text.interface,
                mtu: text.mtu,
                mac: text.mac.0,
                flags: text.flags,
                owner: text.owner,
            };
            (address.octets(), pod)
        };
        let peer = |(subnet, text): (&Ipv4Addr, &PeerText)| -> Result<_> {
            let header = bytes(&text.header)?.try_into().ok();
            let peer = PeerEntry {
                header: header.context("a prepared header has 64 bytes")?,
                vtep: text.vtep.octets(),
                mtu: text.mtu,
                flags: text.flags,
            };
            Ok((subnet.octets(), peer))
        };
        let flow = |text: &FlowText| FlowKey {
            low: text.low.0.octets(),
            high: text.high.0.octets(),
            low_port: text.low.1,
            high_port: text.high.1,
            protocol: text.protocol,
        };
        Ok(World {
            config,
            endpoints: self.endpoints.iter().map(endpoint).collect(),
            pods: self.pods.iter().map(pod).collect(),
            peers: self.peers.iter().map(peer).collect::<Result<_>>()?,
            vteps: self
                .vteps
                .iter()
                .map(|(address, subnets)| (address.octets(), Vtep { subnets: *subnets }))
                .collect(),
            flows: self.flows.iter().map(flow).collect(),
            leases_are_stale: self.leases_are_stale,
        })
    }
}

fn others(endpoint: &Endpoint<V4>) -> Vec<Ipv4Addr> {
    let [first, others @ ..] = endpoint.addresses;
    let differ = others.iter().any(|other| *other != first);
    let others = others.map(Ipv4Addr::from);
    if differ { others.into() } else { Vec::new() }
}
