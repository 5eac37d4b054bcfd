//! `overlayd cleanup`: removes everything of ours from the node, and nothing else.

use std::net::IpAddr;

use crate::backend;
use crate::config::{AgentFlags, SubnetEnv};
use crate::datapath::maps::Maps;
use crate::files;
use crate::kernel;
use crate::mac::MacAddr;
use crate::marks::ROUTE_PROTOCOL;
use crate::observe::agent_file::{AgentFile, AgentLock};
use crate::per_family::PerFamily;
use anyhow::{Context as _, bail};
use ipnet::{IpNet, Ipv4Net};
use overlay_common::V4;

use super::{fast_path, settings};

/// Removes everything that can be removed, and reports every failure.
pub async fn run(flags: &AgentFlags) -> anyhow::Result<()> {
    let Some(_lock) = AgentLock::take(&flags.node.run_dir)? else {
        bail!("overlayd runs on this node: stop it first");
    };
    let mut problems: Vec<String> = Vec::new();
    let pins = settings::pins(flags);
    let config = Maps::<V4>::open(&pins)
        .and_then(|maps| maps.config())
        .ok()
        .flatten();
    let agent = AgentFile::read(&flags.node.run_dir).unwrap_or_default();
    let subnet_env = SubnetEnv::read(&flags.node.subnet_file);

    // With the pins go the programs at the socket, too.
    let taken_off = fast_path::take_off(&pins).and_then(|()| pins.remove_all());
    if let Err(error) = taken_off {
        problems.push(error.to_string());
    }
    let (networks, subnets) = match subnet_env {
        Ok(env) => {
            let networks = env.nets.iter().flat_map(|nets| nets.networks.clone());
            (networks.collect(), Some(env.nets.map(|nets| nets.subnet)))
        }
        Err(error) => {
            if flags.node.subnet_file.exists() {
                problems.push(error.to_string());
            }
            // What is ours is told by other marks; of the network only the family counts.
            (vec![IpNet::from(Ipv4Net::default())], None)
        }
    };
    let mut vxlan = None;
    for network in networks {
        let device = match (&agent, config) {
            (Some(agent), _) => agent.device.clone(),
            (None, Some(config)) => Some(format!("flannel.{}", config.vni)),
            (None, None) => device_of_our_routes(network)
                .await
                .or_else(|| Some("flannel.1".to_owned())),
        };
        if vxlan.is_none()
            && let Some(device) = &device
        {
            vxlan = vxlan_device(device).await;
        }
        if let Err(leftovers) = kernel::cleanup(device.as_deref(), network).await {
            problems.extend(leftovers.0.iter().map(ToString::to_string));
        }
    }
    let recorded = config.map(|config| Identity {
        mac: MacAddr(config.vtep_mac),
        address: Some(config.vtep.into()),
    });
    if let Some(subnets) = subnets
        && let Err(error) = release(flags, &subnets, vxlan.or(recorded)).await
    {
        tracing::warn!("the lease ends by itself: {error:#}");
    }
    if let Err(error) = files::remove(&flags.node.subnet_file) {
        problems.push(format!(
            "unlink {}: {error}",
            flags.node.subnet_file.display()
        ));
    }
    let memory = settings::memory(flags);
    if let Err(error) = files::remove(&memory) {
        problems.push(format!("unlink {}: {error}", memory.display()));
    }
    if let Err(error) = AgentFile::remove(&flags.node.run_dir) {
        problems.push(error.to_string());
    }
    if problems.is_empty() {
        tracing::info!("nothing of the overlay is left but pods, their addresses and the bridge");
        return Ok(());
    }
    bail!(
        "not everything could be removed:\n  {}",
        problems.join("\n  ")
    )
}

/// The VXLAN device, by the routes that carry our protocol and lead to it.
async fn device_of_our_routes(network: IpNet) -> Option<String> {
    let observed = kernel::Kernel::connect().ok()?.observe(None, network).await;
    let mut routes = observed.ok()?.routes.into_iter();
    routes
        .find(|route| route.protocol == ROUTE_PROTOCOL && route.onlink)?
        .device
}

/// The identity of this node to the other nodes.
struct Identity {
    /// MAC address of the VXLAN device.
    mac: MacAddr,
    /// The address that the device sends from, which may not be the node's any more.
    address: Option<IpAddr>,
}

/// The identity by the VXLAN device; `None` without the device.
async fn vxlan_device(name: &str) -> Option<Identity> {
    let link = kernel::Kernel::connect().ok()?.observe_device(name).await;
    let device = link.ok()??;
    Some(Identity {
        mac: device.mac,
        address: device.vxlan?.local,
    })
}

/// Releases this node's lease, also one from before the node's address changed, so that the subnet
/// is free at once.
async fn release(
    flags: &AgentFlags,
    subnets: &PerFamily<IpNet>,
    identity: Option<Identity>,
) -> anyhow::Result<()> {
    let store = settings::open_store(flags)?;
    let config = store.network_config().await?;
    let criteria = settings::criteria(flags);
    let underlay = kernel::Kernel::connect()?
        .select_underlay(&criteria, config.network())
        .await;
    let known = identity.as_ref().and_then(|identity| identity.address);
    let address = match (underlay, known) {
        (Ok(underlay), _) => underlay.public_address,
        (Err(_), Some(address)) => address,
        (Err(error), None) => return Err(error.into()),
    };
    if address.is_ipv6() {
        bail!("public address {address}: the underlay is IPv4");
    }
    let mac = identity.map_or_else(MacAddr::default, |identity| identity.mac);
    let attributes = backend::of(&config.backend).attributes(&PerFamily::V4((address, mac)));
    if store
        .release(subnets, &attributes)
        .await
        .context("release the lease")?
    {
        tracing::info!(%subnets, "lease released");
    }
    Ok(())
}
