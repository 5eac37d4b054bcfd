//! What should be, from what was seen: pure, so that tools and tests can ask for it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::bail;
use ipnet::IpNet;
use overlay_common::V4;
use overlay_common::vxlan::overhead;

use super::seen::Seen;
use super::settings::Settings;
use crate::backend::{self, Peer};
use crate::config::SubnetEnv;
use crate::kernel::guard::GuardState;
use crate::kernel::interface::Underlay;
use crate::kernel::pods::BRIDGE;
use crate::kernel::rules::RuleSet;
use crate::lease::{Attributes, Lease};
use crate::mac::MacAddr;
use crate::reconcile::{Desired, Device};

/// What a round is about, besides the kernel's state: leases and the place of this node.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// This node's lease.
    pub lease: &'a Lease,
    /// MAC address of the VXLAN device.
    pub mac: MacAddr,
    /// The underlay's device.
    pub underlay: &'a Underlay,
    /// The other nodes.
    pub peers: &'a [Peer],
}

/// What the kernel path should be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Device, neighbours, FDB, routes.
    pub kernel: Desired,
    /// The guard of the kernel path, as if no program judged; none where it is not known who else uses the UDP port.
    pub guard: Option<GuardState>,
    /// Masquerading and forwarding.
    pub rules: RuleSet,
    /// What the CNI plugin reads.
    pub subnet_env: SubnetEnv,
}

impl Plan {
    /// The plan for a situation.
    #[must_use]
    pub fn of(settings: &Settings, situation: &Situation<'_>, seen: &Seen) -> Self {
        let network = settings.network();
        let subnet = situation.lease.subnet;
        let mtu = settings.config.vxlan.mtu.unwrap_or(situation.underlay.mtu);
        let kernel = Desired {
            network,
            device: Device {
                name: settings.device.clone(),
                vni: settings.config.vxlan.vni,
                port: settings.config.vxlan.port,
                underlay: situation.underlay.ifindex,
                local: situation.underlay.public_address,
                mtu: mtu.saturating_sub(overhead::<V4>()),
                address: IpNet::from(subnet.network()),
                mac: Some(situation.mac),
            },
            peers: situation
                .peers
                .iter()
                .map(|peer| (peer.subnet, peer.clone()))
                .collect(),
            forwarding: true,
        };
        let flags = &settings.flags.node;
        let gateway = subnet.hosts().next().unwrap_or(subnet.addr());
        Self {
            guard: guard(settings, situation, seen),
            rules: RuleSet {
                network,
                subnet,
                masquerade: flags.ip_masq,
                forward: flags.iptables_forward_rules,
                random_fully: !flags.ip_masq_fully_random_disable,
            },
            subnet_env: SubnetEnv {
                networks: vec![network],
                subnet: IpNet::new(gateway, subnet.prefix_len()).ok(),
                subnet_v6: None,
                mtu: kernel.device.mtu,
                ip_masq: flags.ip_masq,
            },
            kernel,
        }
    }
}

fn guard(settings: &Settings, situation: &Situation<'_>, seen: &Seen) -> Option<GuardState> {
    let (IpNet::V4(network), IpNet::V4(own_subnet), IpAddr::V4(own_vtep)) = (
        settings.network(),
        situation.lease.subnet,
        situation.underlay.public_address,
    ) else {
        return None;
    };
    let peers = situation
        .peers
        .iter()
        .filter_map(|peer| match (peer.vtep, peer.subnet) {
            (IpAddr::V4(vtep), IpNet::V4(subnet)) => Some((vtep, subnet)),
            _ => None,
        });
    let bridge = seen.pods.bridge.as_ref();
    Some(GuardState {
        network,
        own_subnet,
        own_vtep,
        vxlan: settings.device.clone(),
        bridge: bridge.map_or_else(|| BRIDGE.to_owned(), |bridge| bridge.name.clone()),
        port: settings.config.vxlan.port,
        vni: settings.config.vxlan.vni,
        other_vnis: seen.other_vnis.clone()?,
        peers: peers.collect(),
        pods: seen.pods.sources(),
        judged: None,
        translates: settings.flags.node.ip_masq,
        lapse: lapse(settings.flags.node.refuse_without_agent),
    })
}

/// How long the guard outlives the agent. nftables has no time without end for what it calls a timeout.
fn lapse(wanted: Duration) -> Duration {
    const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
    if wanted.is_zero() { FOR_EVER } else { wanted }
}

/// What this node says of itself in its lease.
///
/// # Errors
/// The underlay is not of the overlay's family.
pub fn attributes(underlay: &Underlay, vni: u32, mac: MacAddr) -> anyhow::Result<Attributes> {
    match underlay.public_address {
        IpAddr::V4(address) => Ok(backend::own_attributes(address, vni, mac)),
        IpAddr::V6(address) => bail!("public address {address}: the underlay is IPv4"),
    }
}
