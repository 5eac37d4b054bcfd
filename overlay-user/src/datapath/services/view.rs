//! The contents of the maps of Services, for tools.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use overlay_common::socket::{self, Frontend, Server, ServerKey, Service};
use serde::Serialize;

use super::contents::address_of;
use super::{SERVERS, SERVICES};
use crate::datapath::Error;
use crate::datapath::maps::{dump, open};
use crate::datapath::pins::Pins;

/// An address of a Service, and its servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrontendView {
    /// Address and port.
    pub address: SocketAddr,
    /// `tcp` or `udp`.
    pub transport: &'static str,
    /// For how many seconds a client stays with its server; zero without session affinity.
    pub affinity_seconds: u32,
    /// The servers.
    pub servers: Vec<SocketAddr>,
}

/// Every address of a Service that sockets are given servers for, in order; none where no agent
/// fills the maps.
///
/// # Errors
/// [`Error::Map`].
pub fn view(pins: &Pins) -> Result<Vec<FrontendView>, Error> {
    if !pins.map(SERVICES).exists() {
        return Ok(Vec::new());
    }
    let services = dump::<Frontend, Service>(&open(pins, SERVICES)?, SERVICES)?;
    let servers = dump::<ServerKey, Server>(&open(pins, SERVERS)?, SERVERS)?;
    let mut sets = BTreeMap::<u64, Vec<SocketAddr>>::new();
    for (key, server) in servers {
        let set = sets.entry(key.set).or_default();
        set.push(address_of(server.address, server.port));
    }
    let views = services
        .into_iter()
        .map(|(frontend, service)| FrontendView {
            address: address_of(frontend.address, frontend.port),
            transport: match frontend.transport {
                socket::TCP => "tcp",
                _ => "udp",
            },
            affinity_seconds: service.affinity_seconds,
            servers: sets.remove(&service.set).unwrap_or_default(),
        });
    Ok(views.collect())
}
