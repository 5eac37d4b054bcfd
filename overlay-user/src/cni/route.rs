//! The routes of a pod, as the configuration names them.

use std::net::IpAddr;

use rscni_types::types::Route;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
};

use super::Error;
use crate::kernel::Kernel;
use crate::kernel::links::Link;

/// Adds a route through a device of the pod. `gateway` is used where the route names none.
///
/// # Errors
///
/// [`Error::Config`] if the route is not valid, [`Error::Kernel`] if the kernel refuses it.
pub async fn add(pod: &Kernel, link: &Link, route: &Route, gateway: IpAddr) -> Result<(), Error> {
    let gateway = route.gw.unwrap_or(gateway);
    let message = message(link, route, gateway)?;
    let object = format!("route {} via {gateway}", route.dst);
    Ok(pod.add_route(message, &object).await?)
}

fn message(link: &Link, route: &Route, gateway: IpAddr) -> Result<RouteMessage, Error> {
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
