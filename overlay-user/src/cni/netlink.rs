//! Links, addresses and routes of one network namespace, as far as the plugin needs them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::{Stream, StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_core::ErrorMessage;
use nix::errno::Errno;
use rscni_types::types::Route;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::runtime;
use tokio::task::JoinHandle;

use super::Error;
use super::netns::Netns;
use crate::mac::MacAddr;

/// A netlink socket, which stays in the namespace that it was opened in.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

/// What the kernel says about one device.
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
    /// Text that somebody attached to it.
    pub alias: Option<String>,
}

impl Netlink {
    /// Opens a socket in the namespace of this thread. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`] if the kernel gives none.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| Error::File {
                action: "open",
                path: "netlink socket".into(),
                source,
            })?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Opens a socket in `netns`. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`Netlink::open`], and [`Error::Netns`] if the namespace cannot be entered.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        let runtime = runtime::Handle::current();
        netns.run(move || {
            let _context = runtime.enter();
            Self::open()
        })?
    }

    /// The link requests of the library, for what is used only once.
    #[must_use]
    pub fn links_handle(&self) -> rtnetlink::LinkHandle {
        self.handle.link()
    }

    /// Finds a device by name.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`]; a device that is not there is `None`.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        match self
            .handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await
        {
            Ok(message) => Ok(message.map(Link::from)),
            Err(error) if is(&error, Errno::ENODEV) => Ok(None),
            Err(source) => Err(refused(format!("show link {name}"), source)),
        }
    }

    /// Finds every device.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let links = self.handle.link().get().execute();
        collect(links)
            .await
            .map_err(|source| refused("list links", source))
    }

    /// Changes a device as `message` says.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`], with `action` in it.
    pub async fn set(&self, message: LinkMessage, action: &str) -> Result<(), Error> {
        let done = self.handle.link().set(message).execute().await;
        done.map_err(|source| refused(action, source))
    }

    /// Sets a device up.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn set_up(&self, link: &Link) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        self.set(message, &format!("set {} up", link.name)).await
    }

    /// Deletes a device, and with it the other end of a veth pair. One that is gone is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn delete(&self, link: &Link) -> Result<(), Error> {
        match self.handle.link().del(link.index).execute().await {
            Err(source) if !is(&source, Errno::ENODEV) => {
                Err(refused(format!("delete link {}", link.name), source))
            }
            _ => Ok(()),
        }
    }

    /// The addresses of a device.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn addresses(&self, link: &Link) -> Result<Vec<IpNet>, Error> {
        let request = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index);
        let messages: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .map_err(|source| refused(format!("list addresses of {}", link.name), source))?;
        let address = |message: &rtnetlink::packet_route::address::AddressMessage| {
            // In IPv4 the local address is the device's own; IPv6 has only the other attribute.
            let find = |local| {
                message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        AddressAttribute::Local(address) if local => Some(*address),
                        AddressAttribute::Address(address) if !local => Some(*address),
                        _ => None,
                    })
            };
            IpNet::new(
                find(true).or_else(|| find(false))?,
                message.header.prefix_len,
            )
            .ok()
        };
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Adds an address to a device; one that it has already is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn add_address(&self, link: &Link, address: IpNet) -> Result<(), Error> {
        let request = self
            .handle
            .address()
            .add(link.index, address.addr(), address.prefix_len());
        match request.execute().await {
            Err(source) if !is(&source, Errno::EEXIST) => Err(refused(
                format!("add address {address} to {}", link.name),
                source,
            )),
            _ => Ok(()),
        }
    }

    /// Removes an address from a device.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn remove_address(&self, link: &Link, address: IpNet) -> Result<(), Error> {
        let mut request = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index);
        request.message_mut().header.prefix_len = address.prefix_len();
        let mut found = Box::pin(request.set_address_filter(address.addr()).execute());
        let failed = |source| {
            refused(
                format!("remove address {address} from {}", link.name),
                source,
            )
        };
        while let Some(message) = found.try_next().await.map_err(failed)? {
            self.handle
                .address()
                .del(message)
                .execute()
                .await
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Adds a route through a device. `gateway` is used where the route names none.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn add_route(
        &self,
        link: &Link,
        route: &Route,
        gateway: IpAddr,
    ) -> Result<(), Error> {
        let gateway = route.gw.unwrap_or(gateway);
        let message = route_message(link, route, gateway)?;
        let done = self.handle.route().add(message).execute().await;
        done.map_err(|source| refused(format!("add route {} via {gateway}", route.dst), source))
    }

    /// Destination and gateway of every route through a device.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn routes(&self, link: &Link) -> Result<BTreeSet<(IpNet, Option<IpAddr>)>, Error> {
        let mut routes = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let mut found = Box::pin(self.handle.route().get(request).execute());
            let failed = |source| refused("list routes", source);
            while let Some(message) = found.try_next().await.map_err(failed)? {
                if message
                    .attributes
                    .contains(&RouteAttribute::Oif(link.index))
                {
                    routes.extend(destination_and_gateway(&message));
                }
            }
        }
        Ok(routes)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
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

/// Whether the kernel answered with `errno`.
#[must_use]
pub fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. })
        if code.get() == -(errno as i32))
}

/// An [`Error::Netlink`].
pub fn refused(action: impl Into<String>, source: rtnetlink::Error) -> Error {
    Error::Netlink {
        action: action.into(),
        source,
    }
}

async fn collect(
    messages: impl Stream<Item = Result<LinkMessage, rtnetlink::Error>>,
) -> Result<Vec<Link>, rtnetlink::Error> {
    messages
        .map(|message| message.map(Link::from))
        .try_collect()
        .await
}

fn route_message(link: &Link, route: &Route, gateway: IpAddr) -> Result<RouteMessage, Error> {
    let malformed = |error| Error::Config(format!("route {} via {gateway}: {error}", route.dst));
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.dst.network(), route.dst.prefix_len())
        .map_err(malformed)?
        .gateway(gateway)
        .map_err(malformed)?
        .output_interface(link.index)
        .protocol(RouteProtocol::Boot);
    if let Some(priority) = route.priority {
        builder = builder.priority(priority);
    }
    if let Some(table) = route.table {
        builder = builder.table_id(table);
    }
    if let Some(scope) = route.scope.and_then(|scope| u8::try_from(scope).ok()) {
        builder = builder.scope(RouteScope::from(scope));
    }
    let metrics: Vec<_> = [
        route.mtu.map(RouteMetric::Mtu),
        route.advmss.map(RouteMetric::Advmss),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !metrics.is_empty() {
        builder
            .get_mut()
            .attributes
            .push(RouteAttribute::Metrics(metrics));
    }
    Ok(builder.build())
}

fn destination_and_gateway(message: &RouteMessage) -> Option<(IpNet, Option<IpAddr>)> {
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::from(*address)),
        _ => None,
    };
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let (mut destination, mut gateway) = (unspecified, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    Some((
        IpNet::new(destination, message.header.destination_prefix_length).ok()?,
        gateway,
    ))
}
