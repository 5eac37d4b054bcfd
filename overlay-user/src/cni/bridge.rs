//! The bridge that joins the node's pods, and the gateway's address on it.

use std::{fs, io};

use ipnet::IpNet;
use nix::libc::EEXIST;
use rtnetlink::{LinkBridge, LinkUnspec};

use super::Error;
use super::config::Network;
use super::sysctl;
use crate::kernel::Kernel;
use crate::kernel::links::Link;

/// First byte of a MAC address that no manufacturer gave.
const LOCAL_UNICAST: u8 = 0x02;

/// Makes the bridge of `network` if there is none, and completes an existing one. Several ADDs may
/// do so at the same time.
///
/// # Errors
///
/// [`Error::Kernel`] if the kernel refuses, [`Error::Conflict`] if a device of another kind has
/// the name, the bridge has another network's address, or another device has this network's.
pub async fn ensure(host: &Kernel, network: &Network) -> Result<Link, Error> {
    let mut bridge = find(host, network).await?;
    if bridge.is_none() {
        is_alone(host, network).await?;
        // The bridge is made with an address of its own, because the kernel derives the bridge's
        // identifier from the first address.
        let [_, tail @ ..] = rand::random::<[u8; 6]>();
        let mac = [&[LOCAL_UNICAST], &tail[..]].concat();
        let request = LinkBridge::new(&network.bridge)
            .mtu(network.mtu)
            .address(mac)
            .build();
        let object = format!("bridge {}", network.bridge);
        match host.add_link(request, &object).await {
            // Another ADD was faster.
            Err(error) if error.errno() == Some(EEXIST) => {}
            made => made?,
        }
        // Pods advertise no routes. A kernel without IPv6 has no such file.
        sysctl::try_set(&format!("ipv6/conf/{}/accept_ra", network.bridge), "0");
        bridge = find(host, network).await?;
    }
    let bridge = bridge.ok_or_else(|| {
        Error::Conflict(format!(
            "bridge {} vanished while it was set up",
            network.bridge
        ))
    })?;
    adjust(host, network, &bridge).await?;
    if network.is_gateway {
        ensure_gateway(host, network, &bridge).await?;
        enable_forwarding(network.subnet)?;
    }
    Ok(bridge)
}

/// Refuses if another device has the gateway's address, because the node would have a route to one
/// of the two only, and the agent serves the pods of one bridge.
async fn is_alone(host: &Kernel, network: &Network) -> Result<(), Error> {
    let Some(holder) = host.holder(network.subnet).await? else {
        return Ok(());
    };
    Err(Error::Conflict(format!(
        "delegate.bridge is {}, but this node's pods are on {}, which has the gateway's address \
        {}; name that one, or delete it once its pods are gone",
        network.bridge, holder.name, network.subnet
    )))
}

async fn find(host: &Kernel, network: &Network) -> Result<Option<Link>, Error> {
    match host.find_link(&network.bridge).await? {
        Some(link) if !link.is_bridge => Err(Error::Conflict(format!(
            "{} is there, but it is not a bridge; delete it, or name another in delegate.bridge",
            link.name
        ))),
        found => Ok(found),
    }
}

/// Sets the bridge up. Its MTU is only ever raised: lowering it would cut off pods that were added
/// before.
async fn adjust(host: &Kernel, network: &Network, bridge: &Link) -> Result<(), Error> {
    let mut message = LinkUnspec::new_with_index(bridge.index).up();
    if bridge.mtu < network.mtu {
        message = message.mtu(network.mtu);
    }
    if network.promiscuous {
        message = message.promiscuous(true);
    }
    Ok(host
        .change_link(message.build(), &format!("{} up", bridge.name))
        .await?)
}

async fn ensure_gateway(host: &Kernel, network: &Network, bridge: &Link) -> Result<(), Error> {
    let subnet = network.subnet;
    let addresses = host.addresses_of(bridge.index).await?;
    if addresses.contains(&subnet) {
        return Ok(());
    }
    for other in addresses
        .into_iter()
        .filter(|other| collide(*other, subnet))
    {
        if !network.force_address && has_ports(host, bridge).await? {
            return Err(Error::Conflict(format!(
                "{} has the address {other}, but this node's subnet is {subnet}, and pods are \
                still attached to it; delete them, or set delegate.forceAddress",
                bridge.name
            )));
        }
        tracing::warn!(bridge = bridge.name, %other, %subnet, "replacing the bridge's address");
        host.remove_address(bridge.index, other).await?;
    }
    // The bridge's own address is set explicitly, because a bridge that somebody else made takes
    // the address of one of its ports, and changes it as pods come and go.
    let pin = LinkUnspec::new_with_index(bridge.index)
        .address(bridge.mac.0.to_vec())
        .build();
    host.change_link(pin, &format!("{} address {}", bridge.name, bridge.mac))
        .await?;
    Ok(host.add_address(bridge.index, subnet).await?)
}

/// Whether the two addresses exclude each other on a bridge: any two of IPv4, but in IPv6 only
/// overlapping ones, because the link-local address is always beside ours.
fn collide(other: IpNet, subnet: IpNet) -> bool {
    match (other, subnet) {
        (IpNet::V4(_), IpNet::V4(_)) => true,
        _ => other.contains(&subnet.addr()) || subnet.contains(&other.addr()),
    }
}

async fn has_ports(host: &Kernel, bridge: &Link) -> Result<bool, Error> {
    Ok(host
        .all_links()
        .await?
        .iter()
        .any(|link| link.master == Some(bridge.index)))
}

/// Enables forwarding on the node, because the node is the pods' gateway.
fn enable_forwarding(subnet: IpNet) -> Result<(), Error> {
    let key = if subnet.addr().is_ipv4() {
        "ipv4/ip_forward"
    } else {
        "ipv6/conf/all/forwarding"
    };
    let path = sysctl::path(key);
    let failed = |action| {
        let path = path.clone();
        move |source: io::Error| Error::File {
            action,
            path,
            source,
        }
    };
    // The setting is read first, because /proc/sys may be read-only on nodes whose administrator
    // has set it.
    if fs::read_to_string(&path).map_err(failed("read"))?.trim() == "1" {
        return Ok(());
    }
    fs::write(&path, "1").map_err(failed("write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ipv4_address_and_the_link_local_one() {
        let net = |text: &str| text.parse::<IpNet>().expect("an address");
        assert!(collide(net("10.244.9.1/24"), net("10.244.1.1/24")));
        assert!(!collide(net("fe80::1/64"), net("fd00:1::1/64")));
        assert!(!collide(net("fe80::1/64"), net("10.244.1.1/24")));
        assert!(collide(net("fd00:1::2/64"), net("fd00:1::1/64")));
    }
}
