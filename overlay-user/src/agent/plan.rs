//! The plan of a round, made from the observed state: pure, so that tools and tests can make a
//! plan, too.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::bail;
use ipnet::IpNet;

use super::fast_path::Outlet;
use super::seen::Seen;
use super::settings::Settings;
use crate::backend::{Here, Peer, UnderlayDevice};
use crate::config::{Nets, SubnetEnv};
use crate::kernel::guard::{GuardState, Sources};
use crate::kernel::interface::Underlay;
use crate::kernel::rules::RuleSet;
use crate::lease::{Attributes, Lease};
use crate::mac::MacAddr;
use crate::marks::BRIDGE;
use crate::per_family::PerFamily;
use crate::reconcile::KernelState;

/// This node, with its lease, the MAC address of the backend's device, the underlay's device and
/// the prefixes of the underlay's device.
#[must_use]
pub fn here(
    settings: &Settings,
    lease: &Lease,
    mac: MacAddr,
    underlay: &Underlay,
    on_link: &[IpNet],
) -> Here {
    Here {
        network: settings.network(),
        subnet: *lease.subnets.first(),
        public_ip: underlay.public_address,
        mac,
        nic: UnderlayDevice {
            name: underlay.name.clone(),
            ifindex: underlay.ifindex,
            mtu: underlay.mtu,
        },
        on_link: on_link.to_vec(),
    }
}

/// The desired kernel path.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Device, addresses, neighbours, FDB, routes.
    pub kernel: KernelState,
    /// Longest packet of a pod, in bytes.
    pub mtu: u32,
    /// The guard of the kernel path, as if no program judged; `None` where the other users of the
    /// UDP port are not known.
    pub guard: Option<GuardState>,
    /// Masquerading and forwarding.
    pub rules: RuleSet,
    /// The file that the CNI plugin reads.
    pub subnet_env: SubnetEnv,
}

impl Plan {
    /// The plan for this node and its peers.
    #[must_use]
    pub fn of(
        settings: &Settings,
        here: &Here,
        peers: &[Peer],
        sources: &Sources,
        seen: &Seen,
    ) -> Self {
        let (network, subnet) = (here.network, here.subnet);
        let mtu = settings.backend.mtu(here.nic.mtu);
        let flags = &settings.flags.node;
        let gateway = subnet.hosts().next().unwrap_or(subnet.addr());
        Self {
            kernel: settings.backend.state(here, peers),
            mtu,
            guard: guard(settings, here, sources, seen),
            rules: RuleSet {
                network,
                subnet,
                masquerade: flags.ip_masq,
                forward: flags.iptables_forward_rules,
                random_fully: !flags.ip_masq_fully_random_disable,
            },
            subnet_env: SubnetEnv {
                nets: PerFamily::V4(Nets {
                    networks: vec![network],
                    subnet: IpNet::new_assert(gateway, subnet.prefix_len()),
                }),
                mtu,
                ip_masq: flags.ip_masq,
            },
        }
    }
}

fn guard(settings: &Settings, here: &Here, sources: &Sources, seen: &Seen) -> Option<GuardState> {
    let (IpNet::V4(network), IpNet::V4(own_subnet), IpAddr::V4(own_vtep)) =
        (here.network, here.subnet, here.public_ip)
    else {
        return None;
    };
    let vxlan = settings.config.vxlan();
    let bridge = seen.pods.bridge.as_ref();
    Some(GuardState {
        network,
        own_subnet,
        own_vtep,
        underlay: here.nic.ifindex,
        vxlan: settings.device.clone(),
        nic: (settings.backend.has_direct_ways()).then(|| here.nic.name.clone()),
        bridge: bridge.map_or_else(|| BRIDGE.to_owned(), |bridge| bridge.name.clone()),
        port: vxlan.map_or(0, |vxlan| vxlan.port),
        vni: vxlan.map_or(0, |vxlan| vxlan.vni),
        other_vnis: seen.other_vnis.clone()?,
        peers: sources.clone(),
        pods: seen.pods.sources(),
        judged: None,
        translates: settings.flags.node.ip_masq,
        has_untracked: seen.has_untracked,
        lapse: lapse(settings.flags.node.refuse_without_agent),
    })
}

/// How long the guard refuses by the list of leases after the end of the agent. "For ever" is ten
/// years, because a timeout of nftables is limited.
fn lapse(wanted: Duration) -> Duration {
    const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
    if wanted.is_zero() { FOR_EVER } else { wanted }
}

/// The devices by which the IP stack sends to other nodes; none while the backend's device is
/// missing.
#[must_use]
pub fn outlets(settings: &Settings, seen: &Seen, here: &Here) -> Vec<Outlet> {
    let link = seen.observed.device.as_ref();
    if settings.device.is_some() && link.is_none() {
        return Vec::new();
    }
    let device = link.map(|link| Outlet {
        name: link.name.clone(),
        ifindex: link.ifindex,
    });
    let nic = settings.backend.has_direct_ways().then(|| Outlet {
        name: here.nic.name.clone(),
        ifindex: here.nic.ifindex,
    });
    device.into_iter().chain(nic).collect()
}

/// The attributes of this node's lease.
///
/// # Errors
/// The underlay is not of the overlay's address family.
pub fn attributes(
    settings: &Settings,
    underlay: &Underlay,
    mac: MacAddr,
) -> anyhow::Result<Attributes> {
    let address = underlay.public_address;
    if address.is_ipv6() {
        bail!("public address {address}: the underlay is IPv4");
    }
    Ok(settings.backend.attributes(&PerFamily::V4((address, mac))))
}

#[cfg(test)]
mod tests;
