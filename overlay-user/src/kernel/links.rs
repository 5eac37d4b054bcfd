//! Single devices, by their names: made, changed and read by the CNI plugin, in the host's network
//! namespace or a pod's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};

use super::attributes::{on_device, route_destination, route_gateway};
use super::{Error, Kernel};
use crate::mac::MacAddr;

/// The kernel's data of one device.
#[derive(Clone, Debug)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub is_up: bool,
    /// Whether it can carry packets at the moment.
    pub is_running: bool,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Whether the bridge may send a frame back to this port.
    pub hairpin: bool,
    /// The alias of the device, a text.
    pub alias: Option<String>,
}

impl Kernel {
    /// The device called `name`, if there is one.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn find_link(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut found = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute();
        match self.request("RTM_GETLINK", name, found.try_next()).await {
            Ok(message) => Ok(message.map(Link::from)),
            Err(error) if error.errno() == Some(nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every device.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn all_links(&self) -> Result<Vec<Link>, Error> {
        Ok(self
            .links()
            .await?
            .iter()
            .cloned()
            .map(Link::from)
            .collect())
    }

    /// The device that has an address with this prefix length, if one has.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn holder(&self, address: IpNet) -> Result<Option<Link>, Error> {
        let addresses = self.addresses().await?;
        let has_it = |link: &Link| on_device(&addresses, link.index).any(|it| it == address);
        Ok(self.all_links().await?.into_iter().find(has_it))
    }

    /// Makes a device. `object` describes it in errors.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn add_link(&self, message: LinkMessage, object: &str) -> Result<(), Error> {
        self.look_away();
        let call = self.handle.link().add(message).execute();
        self.request("RTM_NEWLINK", object, call).await
    }

    /// Changes a device as `message` says. `object` describes the change in errors.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn change_link(&self, message: LinkMessage, object: &str) -> Result<(), Error> {
        self.look_away();
        let call = self.handle.link().set(message).execute();
        self.request("RTM_SETLINK", object, call).await
    }

    /// Changes the options of a port of a bridge. `object` describes the change in errors.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn change_port(&self, message: LinkMessage, object: &str) -> Result<(), Error> {
        self.look_away();
        let call = self.handle.link().set_port(message).execute();
        self.request("RTM_SETLINK", object, call).await
    }

    /// Sets a device's Ethernet address.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn set_mac(&self, link: &Link, mac: MacAddr) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(link.index)
            .address(mac.0.to_vec())
            .build();
        let object = format!("{} address {mac}", link.name);
        self.change_link(message, &object).await
    }

    /// Adds a route. `object` describes it in errors.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn add_route(&self, message: RouteMessage, object: &str) -> Result<(), Error> {
        let call = self.handle.route().add(message).execute();
        self.request("RTM_NEWROUTE", object, call).await
    }

    /// Destination and gateway of every route through a device, of both families.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn routes_through(
        &self,
        link: &Link,
    ) -> Result<BTreeSet<(IpNet, Option<IpAddr>)>, Error> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let routes = self.routes(family).await?;
            let through = routes.iter().filter(|route| {
                let device = RouteAttribute::Oif(link.index);
                route.attributes.contains(&device)
            });
            found.extend(
                through.filter_map(|route| Some((route_destination(route)?, route_gateway(route)))),
            );
        }
        Ok(found)
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: MacAddr::default(),
            mtu: 0,
            is_up: message.header.flags.contains(LinkFlags::Up),
            is_running: false,
            is_bridge: false,
            is_veth: false,
            master: None,
            hairpin: false,
            alias: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.try_into().map(MacAddr).unwrap_or_default();
                }
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::OperState(state) => link.is_running = state == State::Up,
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                    link.hairpin = infos.iter().any(|info| {
                        matches!(info, LinkInfo::PortData(InfoPortData::BridgePort(port))
                            if port.contains(&InfoBridgePort::HairpinMode(true)))
                    });
                }
                _ => {}
            }
        }
        link
    }
}
