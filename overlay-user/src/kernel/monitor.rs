//! Changes of the kernel's network as coarse events, each a reason to look again.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Error;
use super::attributes::{self, destination, link_layer};
use crate::mac::MacAddr;
use crate::reconcile::{KernelChange, Route};

/// The groups of all changes that a round depends on.
pub const ROUNDS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

/// The groups of all changes that the way to another node depends on.
pub const NEXT_HOPS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];

/// Bytes of events that the socket holds while the agent is busy.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Larger than any datagram of events; the kernel sends at most a page or two, dumps 32 KiB.
const DATAGRAM: usize = 64 << 10;

/// Something changed in the kernel's network.
#[derive(Clone, Debug, PartialEq)]
pub enum KernelEvent {
    /// A device came, went, or changed.
    Link(u32),
    /// An address of a device came or went.
    Address(u32),
    /// A neighbour of a device came, went, or changed.
    Neighbour(NeighbourChange),
    /// An entry of a device's forwarding database came, went, or changed.
    Fdb {
        /// The device.
        ifindex: u32,
        /// The MAC address of the entry, and the VTEP behind which it is now.
        change: KernelChange,
    },
    /// A route came, went, or changed.
    Route(Box<RouteChange>),
    /// A routing rule came or went.
    Rule,
    /// A queueing discipline or filter of a device came or went.
    TrafficControl(u32),
    /// Events were lost, or could not be read: anything may have changed.
    Overrun,
}

/// The present entry of the neighbour table for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourChange {
    /// The device.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// The neighbour's MAC address; none while the kernel does not know it.
    pub mac: Option<MacAddr>,
    /// The state of the entry; none where the entry was removed.
    pub state: Option<NeighbourState>,
}

impl NeighbourChange {
    /// The change as far as it is about a permanent neighbour.
    #[must_use]
    pub fn permanent(&self) -> KernelChange {
        let mac = self
            .mac
            .filter(|_| self.state == Some(NeighbourState::Permanent));
        KernelChange::Neighbour(self.address, mac)
    }
}

/// A route that came, went, or changed, in any table.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteChange {
    /// The destination of the route.
    pub destination: IpNet,
    /// The change of the main table; none for routes of other tables or kinds.
    pub main: Option<KernelChange>,
}

/// A subscription to the changes of the network namespace of the thread that opened it.
pub struct Monitor {
    groups: &'static [MulticastGroup],
    socket: TokioSocket,
    /// Events of the last datagram that are not returned yet.
    pending: Vec<KernelEvent>,
}

impl Monitor {
    /// Subscribes to some groups.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn subscribe(groups: &'static [MulticastGroup]) -> Result<Self, Error> {
        Ok(Self {
            groups,
            socket: open(groups).map_err(Error::Socket)?,
            pending: Vec::new(),
        })
    }

    /// Waits for the next event. Safe to cancel. A socket that is full or broken is opened anew and
    /// shows as [`KernelEvent::Overrun`].
    ///
    /// # Errors
    /// [`Error::Socket`] when a broken socket cannot be opened anew.
    pub async fn next(&mut self) -> Result<KernelEvent, Error> {
        loop {
            if let Some(event) = self.pending.pop() {
                return Ok(event);
            }
            let mut buffer = Vec::with_capacity(DATAGRAM);
            match self.socket.recv_from(&mut buffer).await {
                Ok(_) => {
                    self.pending = events(&buffer);
                    self.pending.reverse();
                }
                Err(error) => {
                    // ENOBUFS when the socket is full. A full socket drops events silently until it
                    // is empty again; a new socket takes events from now on.
                    tracing::warn!("netlink events: {error}; subscribing anew");
                    self.socket = open(self.groups).map_err(Error::Socket)?;
                    return Ok(KernelEvent::Overrun);
                }
            }
        }
    }
}

fn open(groups: &[MulticastGroup]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let groups = groups
        .iter()
        .fold(0, |all, group| all | 1 << (*group as u32 - 1));
    let plain = socket.socket_mut();
    plain.bind(&SocketAddr::new(0, groups))?;
    // Without the privilege `net.core.rmem_max` is the limit.
    if setsockopt(plain, RcvBufForce, &RECEIVE_BUFFER).is_err() {
        plain.set_rx_buf_sz(RECEIVE_BUFFER)?;
    }
    Ok(socket)
}

/// Reads the messages of a datagram. A message that cannot be read counts as lost.
#[must_use]
pub fn events(mut datagram: &[u8]) -> Vec<KernelEvent> {
    const HEADER: usize = 16;
    let mut events = Vec::new();
    while let Some((length, kind)) = header(datagram) {
        let Some(message) = datagram
            .get(..length)
            .filter(|message| message.len() >= HEADER)
        else {
            break;
        };
        if let Some(event) = event(kind, message)
            && events.last() != Some(&event)
        {
            events.push(event);
        }
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    events
}

/// Length and type of the message at the start of a datagram (`struct nlmsghdr`).
fn header(datagram: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
    Some((usize::try_from(length).ok()?, kind))
}

/// Of most messages only the interface index counts. It stands at the same place of their fixed
/// part (`ifinfomsg`, `ifaddrmsg`, `tcmsg`), in host byte order.
fn event(kind: u16, message: &[u8]) -> Option<KernelEvent> {
    let ifindex = || {
        let bytes = message.get(20..24)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => Some(KernelEvent::Link(ifindex()?)),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Some(KernelEvent::Address(ifindex()?)),
        libc::RTM_NEWRULE | libc::RTM_DELRULE => Some(KernelEvent::Rule),
        libc::RTM_NEWQDISC | libc::RTM_DELQDISC | libc::RTM_NEWTFILTER | libc::RTM_DELTFILTER => {
            Some(KernelEvent::TrafficControl(ifindex()?))
        }
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH | libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
                Ok(message) => whole(&message),
                Err(error) => {
                    tracing::debug!("a netlink event that cannot be read: {error}");
                    Some(KernelEvent::Overrun)
                }
            }
        }
        _ => None,
    }
}

/// The event of a message that was read whole.
fn whole(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<KernelEvent> {
    let NetlinkPayload::InnerMessage(inner) = &message.payload else {
        return None;
    };
    let replaces = message.header.flags & NLM_F_REPLACE != 0;
    match inner {
        RouteNetlinkMessage::NewNeighbour(neighbour) => self::neighbour(neighbour, true),
        RouteNetlinkMessage::DelNeighbour(neighbour) => self::neighbour(neighbour, false),
        RouteNetlinkMessage::NewRoute(route) if replaces => {
            self::route(route, KernelChange::Replaced)
        }
        RouteNetlinkMessage::NewRoute(route) => self::route(route, KernelChange::Added),
        RouteNetlinkMessage::DelRoute(route) => self::route(route, KernelChange::Removed),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage, is_there: bool) -> Option<KernelEvent> {
    let ifindex = message.header.ifindex;
    if message.header.family == AddressFamily::Bridge {
        let vtep = destination(message);
        // Before Linux 6.14, `rtnl_fdb_add()` in net/core/rtnetlink.c tells of every new entry once
        // more, after the device's driver has, and without the destination.
        if is_there && vtep.is_none() {
            return None;
        }
        let change = KernelChange::Fdb(link_layer(message)?, vtep.filter(|_| is_there));
        return Some(KernelEvent::Fdb { ifindex, change });
    }
    Some(KernelEvent::Neighbour(NeighbourChange {
        ifindex,
        address: destination(message)?,
        mac: link_layer(message).filter(|_| is_there),
        state: is_there.then_some(message.header.state),
    }))
}

fn route(message: &RouteMessage, change: fn(Route) -> KernelChange) -> Option<KernelEvent> {
    Some(KernelEvent::Route(Box::new(RouteChange {
        destination: attributes::route_destination(message)?,
        main: attributes::route(message, device_name).map(change),
    })))
}

/// The name of a device of the thread's network namespace.
fn device_name(ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?;
    name.into_string().ok()
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};

    use super::*;

    fn message(kind: u16, ifindex: u32) -> Vec<u8> {
        let mut bytes = 32u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 14]);
        bytes.extend(ifindex.to_ne_bytes());
        bytes.resize(32, 0);
        bytes
    }

    #[test]
    fn every_message_of_a_datagram_is_an_event() {
        let mut datagram = message(libc::RTM_NEWLINK, 7);
        datagram.extend(message(libc::RTM_DELADDR, 9));
        datagram.extend(message(libc::RTM_NEWNSID, 1));
        assert_eq!(
            events(&datagram),
            [KernelEvent::Link(7), KernelEvent::Address(9)]
        );
    }

    #[test]
    fn neighbours_and_fdb_entries_tell_what_they_are_about() {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 3;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([192, 0, 2, 9].into())),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
        ];
        let address = IpAddr::from([192, 0, 2, 9]);
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let Some(KernelEvent::Neighbour(there)) = neighbour(&message, true) else {
            panic!("no neighbour");
        };
        assert_eq!(
            there.permanent(),
            KernelChange::Neighbour(address, Some(mac))
        );
        let Some(KernelEvent::Neighbour(gone)) = neighbour(&message, false) else {
            panic!("no neighbour");
        };
        assert_eq!(gone.permanent(), KernelChange::Neighbour(address, None));
        message.header.family = AddressFamily::Bridge;
        assert_eq!(
            neighbour(&message, true),
            Some(KernelEvent::Fdb {
                ifindex: 3,
                change: KernelChange::Fdb(mac, Some(address))
            })
        );
        message.attributes.remove(0);
        assert_eq!(neighbour(&message, true), None, "told once more");
        assert_eq!(
            neighbour(&message, false),
            Some(KernelEvent::Fdb {
                ifindex: 3,
                change: KernelChange::Fdb(mac, None)
            })
        );
    }

    #[test]
    fn what_cannot_be_read_counts_as_lost() {
        let torn = message(libc::RTM_NEWNEIGH, 7);
        assert_eq!(events(&torn[..20]), []);
        let mut short = 20u32.to_ne_bytes().to_vec();
        short.extend(libc::RTM_NEWNEIGH.to_ne_bytes());
        short.resize(20, 0);
        assert_eq!(events(&short), [KernelEvent::Overrun]);
    }

    #[test]
    fn a_torn_datagram_ends_where_it_is_torn() {
        let mut datagram = message(libc::RTM_NEWLINK, 7);
        datagram.extend(&message(libc::RTM_NEWLINK, 8)[..20]);
        assert_eq!(events(&datagram), [KernelEvent::Link(7)]);
        assert_eq!(events(&[0; 64]), []);
    }
}
