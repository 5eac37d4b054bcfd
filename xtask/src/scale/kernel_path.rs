//! The peers in the kernel path: routes, neighbours and FDB entries, as reported by the kernel's
//! events.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt};
use overlay_tests::Namespace;

use super::leases::Invented;

/// Multicast groups of rtnetlink (linux/rtnetlink.h): changes of neighbours, the FDB's included,
/// and of IPv4 routes.
const GROUPS: u32 = 0x4 | 0x40;
/// Room for the events of tens of thousands of peers at once, in bytes.
const ROOM: usize = 256 << 20;
/// Prefix length of a peer's subnet.
const SUBNET: u8 = 24;

/// The kernel's state since the begin of the observation.
pub struct KernelPath {
    socket: OwnedFd,
    /// Subnets that have a route.
    routes: HashSet<Ipv4Addr>,
    /// The neighbours' MAC addresses.
    neighbours: HashMap<Ipv4Addr, [u8; 6]>,
    /// The VTEPs' addresses by MAC address.
    fdb: HashMap<[u8; 6], Ipv4Addr>,
}

impl KernelPath {
    /// Follows the state of a network namespace from now on.
    pub fn follow(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.inside(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let protocol = SockProtocol::NetlinkRoute;
            let socket = socket::socket(
                socket::AddressFamily::Netlink,
                SockType::Raw,
                flags,
                protocol,
            )?;
            socket::setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
            socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
            nix::Result::Ok(socket)
        })?;
        Ok(Self {
            socket: socket.context("follow rtnetlink's events")?,
            routes: HashSet::new(),
            neighbours: HashMap::new(),
            fdb: HashMap::new(),
        })
    }

    /// Takes in the events that have arrived; waits at most for `limit` while there are none.
    pub fn take_in(&mut self, limit: Duration) -> Result<()> {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut wanted = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut wanted, limit).context("poll rtnetlink's events")?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => self.read(&buffer[..length])?,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::ENOBUFS) => bail!("this program was too slow for rtnetlink's events"),
                Err(error) => return Err(error).context("receive rtnetlink's events"),
            }
        }
    }

    /// The number of peers that have routes.
    pub fn routes(&self) -> usize {
        self.routes.len()
    }

    /// Whether all three entries of a peer exist.
    pub fn has(&self, peer: Invented) -> bool {
        self.routes.contains(&peer.subnet())
            && self.neighbours.get(&peer.subnet()) == Some(&peer.mac())
            && self.fdb.get(&peer.mac()) == Some(&peer.vtep())
    }

    /// Whether none of the three entries exists.
    pub fn lacks(&self, peer: Invented) -> bool {
        !self.routes.contains(&peer.subnet())
            && !self.neighbours.contains_key(&peer.subnet())
            && !self.fdb.contains_key(&peer.mac())
    }

    fn read(&mut self, mut datagram: &[u8]) -> Result<()> {
        while !datagram.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram)
                .context("understand rtnetlink's event")?;
            if let NetlinkPayload::InnerMessage(inner) = message.payload {
                self.apply(&inner);
            }
            // Messages are aligned to four bytes (RFC 3549, section 2.2).
            let length = (message.header.length as usize).next_multiple_of(4);
            datagram = datagram.get(length.max(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn apply(&mut self, message: &RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewRoute(route) => {
                self.routes.extend(subnet(route));
            }
            RouteNetlinkMessage::DelRoute(route) => {
                if let Some(subnet) = subnet(route) {
                    self.routes.remove(&subnet);
                }
            }
            RouteNetlinkMessage::NewNeighbour(entry) => match neighbour(entry) {
                Some((Table::Neighbours, address, Some(mac))) => {
                    self.neighbours.insert(address, mac);
                }
                Some((Table::Fdb, address, Some(mac))) => {
                    self.fdb.insert(mac, address);
                }
                _ => {}
            },
            RouteNetlinkMessage::DelNeighbour(entry) => match neighbour(entry) {
                Some((Table::Neighbours, address, _)) => {
                    self.neighbours.remove(&address);
                }
                Some((Table::Fdb, _, Some(mac))) => {
                    self.fdb.remove(&mac);
                }
                _ => {}
            },
            _ => {}
        }
    }
}

/// The subnet of a route to a peer.
fn subnet(route: &RouteMessage) -> Option<Ipv4Addr> {
    if route.header.destination_prefix_length != SUBNET {
        return None;
    }
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        })
}

/// The table of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Neighbours,
    Fdb,
}

/// The table, the address (a neighbour's, or a VTEP's) and the MAC address of an entry, which a
/// neighbour that does not answer lacks.
fn neighbour(entry: &NeighbourMessage) -> Option<(Table, Ipv4Addr, Option<[u8; 6]>)> {
    let table = match entry.header.family {
        AddressFamily::Inet => Table::Neighbours,
        AddressFamily::Bridge => Table::Fdb,
        _ => return None,
    };
    let address = entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
            // The family of an FDB entry's destination is known by the destination's length only.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Into::into)
            }
            _ => None,
        })?;
    let mac = entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                <[u8; 6]>::try_from(bytes.as_slice()).ok()
            }
            _ => None,
        });
    Some((table, address, mac))
}
