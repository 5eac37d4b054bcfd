//! One look at the kernel's network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType,
};

use super::link::{link_name, mac};
use super::neighbour::{destination, link_layer};
use super::{Error, Kernel, sysctl};
use crate::reconcile::{KernelState, Link, Route, VxlanAttributes, is_of_interest};

impl Kernel {
    /// Reads what [`crate::reconcile::diff`] judges: the device called `device`, if the backend makes
    /// one, with all that hangs on it; the main table's routes and the forwarding switch, in the address
    /// family of `network`.
    ///
    /// # Errors
    /// What netlink or `/proc` says.
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
        let routes = self.routes(network).await?;
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
            observed.link = self.observe_device(device).await?;
        }
        let Some(ifindex) = observed.link.as_ref().map(|link| link.ifindex) else {
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
    /// What netlink says.
    pub async fn observe_device(&self, name: &str) -> Result<Option<Link>, Error> {
        let links = self.links().await?;
        let Some(link) = links.iter().find(|link| link_name(link) == Some(name)) else {
            return Ok(None);
        };
        let addresses = self.addresses().await?;
        Ok(Some(Link {
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

/// The addresses of one device, each with its prefix length.
pub fn on_device(addresses: &[AddressMessage], ifindex: u32) -> impl Iterator<Item = IpNet> + '_ {
    addresses
        .iter()
        .filter(move |a| a.header.index == ifindex)
        .filter_map(|message| IpNet::new(own_address(message)?, message.header.prefix_len).ok())
}

/// The address that a message is about: IFA_LOCAL is the device's own where IFA_ADDRESS may be that of the other
/// end.
pub(super) fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let (mut address, mut local) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(found) => address = Some(*found),
            AddressAttribute::Local(found) => local = Some(*found),
            _ => {}
        }
    }
    local.or(address)
}

/// MAC address of a device.
pub(super) fn link_mac(link: &LinkMessage) -> Option<crate::mac::MacAddr> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => mac(bytes),
            _ => None,
        })
}

/// MTU of a device, zero when the kernel does not tell.
pub fn link_mtu(link: &LinkMessage) -> u32 {
    let mtu = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    };
    link.attributes.iter().find_map(mtu).unwrap_or(0)
}

/// Whether IPv6 configures a device by itself; a kernel without IPv6 says nothing of it.
fn configures_itself(link: &LinkMessage) -> bool {
    let specs = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::AfSpecUnspec(specs) => Some(specs),
            _ => None,
        });
    let inet6 = specs.flatten().filter_map(|spec| match spec {
        AfSpecUnspec::Inet6(inet6) => Some(inet6),
        _ => None,
    });
    inet6.flatten().any(|attribute| match attribute {
        AfSpecInet6::DevConf(settings) => settings.accept_ra != 0,
        AfSpecInet6::AddrGenMode(mode) => *mode != In6AddrGenMode::None,
        _ => false,
    })
}

/// What kind of VXLAN device this is, if it is one.
pub fn vxlan(link: &LinkMessage) -> Option<VxlanAttributes> {
    let infos = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })?;
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    })?;
    let mut attributes = VxlanAttributes {
        vni: 0,
        port: 0,
        underlay: 0,
        local: None,
        learning: false,
    };
    for info in data {
        match info {
            InfoVxlan::Id(vni) => attributes.vni = *vni,
            InfoVxlan::Port(port) => attributes.port = *port,
            InfoVxlan::Link(ifindex) => attributes.underlay = *ifindex,
            InfoVxlan::Local(address) => attributes.local = Some((*address).into()),
            InfoVxlan::Local6(address) => attributes.local = Some((*address).into()),
            InfoVxlan::Learning(learning) => attributes.learning = *learning,
            _ => {}
        }
    }
    Some(attributes)
}

/// Where a route leads, whatever table it is in.
pub(super) fn route_destination(message: &RouteMessage) -> Option<IpNet> {
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let to = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
    IpNet::new(
        to.unwrap_or(unspecified),
        message.header.destination_prefix_length,
    )
    .ok()
}

/// The name of a device of the thread's network namespace.
pub(super) fn device_name(ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?;
    name.into_string().ok()
}

/// A unicast route of the main table; `name` tells a device's name by its index.
#[must_use]
pub fn route(message: &RouteMessage, name: impl Fn(u32) -> Option<String>) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let (mut gateway, mut device, mut metric) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(ifindex) => device = name(*ifindex),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    Some(Route {
        subnet: route_destination(message)?,
        gateway,
        device,
        onlink: header.flags.contains(RouteFlags::Onlink),
        protocol: header.protocol.into(),
        metric,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The default routes of a family, best first: metric and outgoing device.
pub fn default_devices(messages: &[RouteMessage]) -> Vec<u32> {
    let mut found: BTreeSet<(u32, u32)> = BTreeSet::new();
    for message in messages {
        let header = &message.header;
        if header.table != RouteHeader::RT_TABLE_MAIN
            || header.kind != RouteType::Unicast
            || header.destination_prefix_length != 0
        {
            continue;
        }
        let mut metric = 0;
        let mut devices = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(ifindex) => devices.push(*ifindex),
                RouteAttribute::MultiPath(hops) => {
                    devices.extend(hops.iter().map(|hop| hop.interface_index));
                }
                _ => {}
            }
        }
        found.extend(devices.into_iter().map(|device| (metric, device)));
    }
    found.into_iter().map(|(_, device)| device).collect()
}
