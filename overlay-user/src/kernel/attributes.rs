//! Reads the attributes of netlink messages about devices, addresses, neighbours and routes. No
//! function here sends a request.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVxlan, LinkAttribute, LinkInfo,
    LinkMessage,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType,
};

use crate::mac::MacAddr;
use crate::reconcile::{Route, VxlanAttributes};

/// Name of a device.
pub(super) fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
}

/// MAC address in a netlink attribute; `None` for devices without Ethernet addresses.
pub(super) fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

/// MAC address of a device.
pub(super) fn link_mac(link: &LinkMessage) -> Option<MacAddr> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => mac(bytes),
            _ => None,
        })
}

/// MTU of a device in bytes; zero without the attribute.
pub fn link_mtu(link: &LinkMessage) -> u32 {
    let mtu = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    };
    link.attributes.iter().find_map(mtu).unwrap_or(0)
}

/// Whether IPv6 autoconfigures a device; a kernel without IPv6 has no such attribute.
pub(super) fn configures_itself(link: &LinkMessage) -> bool {
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

/// The attributes of a VXLAN device; `None` for another kind.
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

/// The addresses of one device, each with its prefix length.
pub fn on_device(addresses: &[AddressMessage], ifindex: u32) -> impl Iterator<Item = IpNet> + '_ {
    addresses
        .iter()
        .filter(move |a| a.header.index == ifindex)
        .filter_map(|message| IpNet::new(own_address(message)?, message.header.prefix_len).ok())
}

/// The address that a message is about: IFA_LOCAL is the device's own where IFA_ADDRESS may be that
/// of the other end.
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

/// The address of a neighbour or FDB entry. The family is taken from the length of the address,
/// because the message of an FDB entry has the bridge's family.
pub(super) fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                Some((*address).into())
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                Some((*address).into())
            }
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
                v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
                    .ok()
            }
            _ => None,
        })
}

/// The MAC address of a neighbour or FDB entry.
pub(super) fn link_layer(message: &NeighbourMessage) -> Option<MacAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
            _ => None,
        })
}

/// The destination of a route of any table.
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

/// The next hop of a route, if it has one.
pub(super) fn route_gateway(message: &RouteMessage) -> Option<IpAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        })
}

/// A unicast route of the main table; `name` returns a device's name by its index.
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
