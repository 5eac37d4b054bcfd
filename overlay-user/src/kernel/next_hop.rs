//! The next hop and the MTU of packets that leave the underlay's device towards other nodes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::attributes::{destination, link_layer};
use super::questions::Questions;
use super::{Error, Kernel};
use crate::mac::MacAddr;

/// The next hop of packets to an address by a given device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The address to look up in the neighbour table: a router's, or that of the node itself.
    pub address: IpAddr,
    /// The route's own MTU in bytes, where one was configured.
    pub mtu: Option<u32>,
}

/// A neighbour to which the kernel would send without neighbour discovery first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// MAC address of the next hop.
    pub mac: MacAddr,
    /// Whether the kernel would confirm the neighbour at the next packet.
    pub is_stale: bool,
}

/// Most requests sent to the kernel at once, because their answers have to fit the socket's buffer.
const AT_ONCE: usize = 64;

/// The routes from `source` to `addresses` by the device `ifindex`, as the kernel's own VXLAN would
/// take them; `None` for addresses that the routes lead to by another device, or not at all.
///
/// # Errors
/// The error from netlink.
pub async fn routes_by(
    ifindex: u32,
    source: IpAddr,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Result<BTreeMap<IpAddr, Option<NextHop>>, Error> {
    let addresses: Vec<IpAddr> = addresses.into_iter().collect();
    let mut found = BTreeMap::new();
    if addresses.is_empty() {
        return Ok(found);
    }
    let mut questions = Questions::open("RTM_GETROUTE")?;
    for some in addresses.chunks(AT_ONCE) {
        let messages = some.iter().map(|address| question(source, *address));
        let answers = questions.ask(messages.collect()).await?;
        for (address, answer) in some.iter().zip(answers) {
            let route = match answer {
                Some(RouteNetlinkMessage::NewRoute(route)) => Some(route),
                // Unreachable, or prohibited.
                _ => None,
            };
            // The request does not name the device, because the kernel would then make up a route
            // by it.
            let route = route.filter(|route| device(route) == Some(ifindex));
            let next_hop = route.map(|route| NextHop {
                address: gateway(&route).unwrap_or(*address),
                mtu: mtu(&route),
            });
            found.insert(*address, next_hop);
        }
    }
    Ok(found)
}

/// The request for the route that the kernel's own VXLAN takes.
fn question(source: IpAddr, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    (header.address_family, header.destination_prefix_length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    header.source_prefix_length = header.destination_prefix_length;
    message.attributes = vec![
        RouteAttribute::Destination(address.into()),
        RouteAttribute::Source(source.into()),
    ];
    RouteNetlinkMessage::GetRoute(message)
}

impl Kernel {
    /// The usable neighbours of the device `ifindex`, in one request.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn neighbours_on(&self, ifindex: u32) -> Result<BTreeMap<IpAddr, Neighbour>, Error> {
        let neighbours = self.neighbours_of(ifindex).await?;
        let usable = neighbours.iter().filter(|neighbour| {
            neighbour.header.ifindex == ifindex && is_usable(neighbour.header.state)
        });
        Ok(usable
            .filter_map(|neighbour| {
                let address = destination(neighbour)?;
                let neighbour = Neighbour {
                    mac: link_layer(neighbour)?,
                    is_stale: neighbour.header.state == NeighbourState::Stale,
                };
                Some((address, neighbour))
            })
            .collect())
    }

    /// Lets the kernel confirm a stale neighbour, as a packet to it would (`NTF_USE`).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn confirm_neighbour(&self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        let neighbours = self.handle.neighbours();
        let call = neighbours
            .add(ifindex, address)
            .flags(NeighbourFlags::Use)
            .replace();
        self.request("RTM_NEWNEIGH", &address.to_string(), call.execute())
            .await
    }
}

/// Whether the kernel would send to a neighbour in this state at once (`NUD_VALID`).
#[must_use]
pub fn is_usable(state: NeighbourState) -> bool {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    matches!(state, Delay | Noarp | Permanent | Probe | Reachable | Stale)
}

fn device(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(ifindex) => Some(*ifindex),
            _ => None,
        })
}

fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some((*address).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some((*address).into()),
            _ => None,
        })
}

/// The configured MTU of a route. An MTU learned from an ICMP message does not count, because the
/// message may be about a pod behind the other node's masquerading, and because encapsulated
/// packets may be fragmented on the way (no DF).
fn mtu(route: &RouteMessage) -> Option<u32> {
    let learned = route.attributes.iter().any(
        |attribute| matches!(attribute, RouteAttribute::CacheInfo(cache) if cache.expires != 0),
    );
    route
        .attributes
        .iter()
        .filter(|_| !learned)
        .find_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) => Some(*mtu),
                _ => None,
            }),
            _ => None,
        })
}
