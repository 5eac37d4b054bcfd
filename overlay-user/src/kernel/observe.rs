//! One look at the kernel's network.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::neighbour::NeighbourState;

use super::attributes::{
    configures_itself, destination, link_layer, link_mac, link_mtu, link_name, on_device, route,
    vxlan,
};
use super::route::family;
use super::{Error, Kernel, sysctl};
use crate::reconcile::{KernelState, OverlayDevice, is_of_interest};

impl Kernel {
    /// Reads the state that [`crate::reconcile::diff`] compares: the device called `device`, if the
    /// backend makes one, with its addresses, neighbours and FDB; the main table's routes and the
    /// forwarding switch, in the address family of `network`.
    ///
    /// # Errors
    /// The error from netlink or `/proc`.
    pub async fn observe(
        &self,
        device: Option<&str>,
        network: IpNet,
    ) -> Result<KernelState, Error> {
        let links = self.links().await?;
        let names: BTreeMap<u32, &str> = links
            .iter()
            .filter_map(|l| Some((l.header.index, link_name(l)?)))
            .collect();
        let name = |ifindex| names.get(&ifindex).map(|name| (*name).to_owned());
        let routes = self.routes(family(network)).await?;
        let mut observed = KernelState {
            network: Some(network),
            routes: routes
                .iter()
                .filter_map(|message| route(message, name))
                .filter(|route| is_of_interest(network, route))
                .collect(),
            forwarding: sysctl::forwarding(network.addr())?,
            ..KernelState::default()
        };
        if let Some(device) = device {
            observed.device = self.observe_device(device).await?;
        }
        let Some(ifindex) = observed.device.as_ref().map(|link| link.ifindex) else {
            return Ok(observed);
        };
        let same_family = |address: &IpAddr| address.is_ipv4() == network.addr().is_ipv4();
        let neighbours = self.neighbours_of(ifindex).await?;
        observed.neighbours = neighbours
            .iter()
            .filter(|n| n.header.ifindex == ifindex && n.header.state == NeighbourState::Permanent)
            .filter_map(|n| Some((destination(n)?, link_layer(n)?)))
            .filter(|(address, _)| same_family(address))
            .collect();
        observed.fdb = self
            .fdb()
            .await?
            .iter()
            .filter(|entry| entry.header.ifindex == ifindex)
            .filter_map(|entry| Some((link_layer(entry)?, destination(entry)?)))
            .collect();
        Ok(observed)
    }

    /// The device of a name with its addresses, if there is one.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn observe_device(&self, name: &str) -> Result<Option<OverlayDevice>, Error> {
        let links = self.links().await?;
        let Some(link) = links.iter().find(|link| link_name(link) == Some(name)) else {
            return Ok(None);
        };
        let addresses = self.addresses().await?;
        Ok(Some(OverlayDevice {
            name: name.to_owned(),
            ifindex: link.header.index,
            vxlan: vxlan(link),
            mac: link_mac(link).unwrap_or_default(),
            mtu: link_mtu(link),
            up: link.header.flags.contains(LinkFlags::Up),
            addresses: on_device(&addresses, link.header.index).collect(),
            configures_itself: configures_itself(link),
        }))
    }
}
