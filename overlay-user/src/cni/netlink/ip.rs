//! Addresses and routes of a device.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rscni_types::types::Route;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
};

use super::{Link, Netlink, is, refused};
use crate::cni::Error;

impl Netlink {
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
        let address = |message: &AddressMessage| {
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

    /// The device that has an address, if one has.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn holder(&self, address: IpNet) -> Result<Option<Link>, Error> {
        for link in self.links().await? {
            if self.addresses(&link).await?.contains(&address) {
                return Ok(Some(link));
            }
        }
        Ok(None)
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
