//! Routes to the subnets of peers.

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::{Error, Kernel, gone_is_fine};
use crate::reconcile::Route;

/// The treatment of a present route to the same destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfPresent {
    /// Keep the present route and fail.
    Fail,
    /// Replace the present route in one step.
    Replace,
}

impl Kernel {
    /// Every route of a family, of all tables.
    pub(super) async fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let call = self.handle.route().get(message).execute();
        self.dump("RTM_GETROUTE", "all tables", call).await
    }

    /// Installs a route in the main table through device `ifindex`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn install_route(
        &self,
        ifindex: u32,
        route: &Route,
        present: IfPresent,
    ) -> Result<(), Error> {
        let mut call = self.handle.route().add(message(Some(ifindex), route));
        if present == IfPresent::Replace {
            call = call.replace();
        }
        self.request("RTM_NEWROUTE", &route.subnet.to_string(), call.execute())
            .await
    }

    /// Removes a route of the main table; a missing one is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove_route(&self, ifindex: Option<u32>, route: &Route) -> Result<(), Error> {
        let mut message = message(ifindex, route);
        // Any scope: one that somebody made by hand without a gateway has another.
        message.header.scope = RouteScope::NoWhere;
        let call = self.handle.route().del(message).execute();
        gone_is_fine(
            self.request("RTM_DELROUTE", &route.subnet.to_string(), call)
                .await,
        )
    }
}

fn message(ifindex: Option<u32>, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.subnet);
    header.destination_prefix_length = route.subnet.prefix_len();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::from(route.protocol);
    header.scope = RouteScope::Universe;
    header.kind = RouteType::Unicast;
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(route.subnet.network().into()));
    attributes.extend(
        route
            .gateway
            .map(|gateway| RouteAttribute::Gateway(gateway.into())),
    );
    attributes.extend(ifindex.map(RouteAttribute::Oif));
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

pub(super) fn family(network: IpNet) -> AddressFamily {
    match network {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}
