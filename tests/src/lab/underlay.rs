//! The network below the overlay: a bridge in a separate namespace, to which nodes, store and the
//! outside are connected.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::state::Shared;
use crate::{Namespace, command};

/// The underlay; node `i` has address `.i`.
pub const UNDERLAY_SUBNET: &str = "192.168.66.0/24";
/// A host beyond the cluster, reached over the nodes' default route. It has no route back to pods.
pub const OUTSIDE_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// That host's address on the underlay, which is the nodes' default gateway.
pub const OUTSIDE_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 253);
/// The store's address on the underlay.
pub(super) const STORE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 254);

/// Name of the bridge's namespace, without the lab's prefix.
pub(super) const WIRE: &str = "underlay";
const OUTSIDE: &str = "outside";
const BRIDGE: &str = "br0";

/// Address of node `number` on the underlay.
pub(super) fn node_address(number: usize) -> Ipv4Addr {
    let number = u8::try_from(number).unwrap_or(u8::MAX);
    Ipv4Addr::new(192, 168, 66, number)
}

/// Makes the bridge and the outside.
pub(super) fn create(shared: &Shared) -> Result<()> {
    let mtu = shared.read(|state| state.options.underlay_mtu);
    let wire = super::add_namespace(shared, WIRE)?;
    Namespace::new(&wire).inside(|| {
        // A switch does not filter. The file exists only where br_netfilter is loaded.
        for table in ["iptables", "ip6tables", "arptables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
            if fs::exists(&path).unwrap_or(false) {
                fs::write(&path, "0").with_context(|| format!("write {path}"))?;
            }
        }
        anyhow::Ok(())
    })??;
    command::ip_batch(
        &wire,
        &format!(
            "link add {BRIDGE} type bridge mcast_snooping 0\nlink set {BRIDGE} mtu {mtu} up\n"
        ),
    )?;
    let outside = super::add_namespace(shared, OUTSIDE)?;
    plug(shared, OUTSIDE, &outside, OUTSIDE_GATEWAY)?;
    command::ip(&format!(
        "-n {outside} address add {OUTSIDE_ADDRESS}/32 dev lo"
    ))?;
    Ok(())
}

/// Gives a namespace an `eth0` on the underlay; `port` names the bridge's end of the cable.
pub(super) fn plug(shared: &Shared, port: &str, namespace: &str, address: Ipv4Addr) -> Result<()> {
    let mtu = shared.read(|state| state.options.underlay_mtu);
    let wire = format!("{}{WIRE}", shared.prefix());
    command::ip_batch(
        &wire,
        &format!(
            "link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {namespace}\n\
             link set {port} master {BRIDGE} up\n"
        ),
    )?;
    command::ip_batch(
        namespace,
        &format!("address add {address}/24 dev eth0\nlink set eth0 up\n"),
    )
}
