//! What changed in the kernel's network: coarse events, each a reason to look again.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::libc;
use rtnetlink::MulticastGroup;

use super::Error;

/// The groups that a monitor listens to.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

/// Room for events while the agent is busy.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Larger than any datagram of events; the kernel sends at most a page or two, dumps 32 KiB.
const DATAGRAM: usize = 64 << 10;

/// Something changed. Who needs to know what it is now looks for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A device came, went, or changed.
    Link(u32),
    /// An address of a device came or went.
    Address(u32),
    /// A neighbour or FDB entry of a device came, went, or changed.
    Neighbour(u32),
    /// A route came, went, or changed.
    Route,
    /// A queueing discipline or filter of a device came or went.
    TrafficControl(u32),
    /// Events were lost: anything may have changed.
    Overrun,
}

/// A subscription to the changes of the network namespace of the thread that opened it.
pub struct Monitor {
    socket: TokioSocket,
    /// What is left of the last datagram.
    pending: Vec<Event>,
}

impl Monitor {
    /// Subscribes.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn subscribe() -> Result<Self, Error> {
        Ok(Self {
            socket: open().map_err(Error::Socket)?,
            pending: Vec::new(),
        })
    }

    /// Waits for the next event. Safe to cancel. A socket that is full or broken is opened anew and shows as
    /// [`Event::Overrun`].
    ///
    /// # Errors
    /// [`Error::Socket`] when a broken socket cannot be opened anew.
    pub async fn next(&mut self) -> Result<Event, Error> {
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
                    // ENOBUFS when the socket is full. It takes nothing, and says nothing of it, until
                    // it is empty again; a new one takes events from now on.
                    tracing::warn!("netlink events: {error}; subscribing anew");
                    self.socket = open().map_err(Error::Socket)?;
                    return Ok(Event::Overrun);
                }
            }
        }
    }
}

fn open() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let groups = GROUPS
        .iter()
        .fold(0, |all, group| all | 1 << (*group as u32 - 1));
    let plain = socket.socket_mut();
    plain.bind(&SocketAddr::new(0, groups))?;
    plain.set_rx_buf_sz(RECEIVE_BUFFER)?;
    Ok(socket)
}

/// Reads the types of the messages in a datagram. All but routes have the interface index at the same
/// place of their fixed part (`ifinfomsg`, `ifaddrmsg`, `ndmsg`, `tcmsg`), in host byte order.
#[must_use]
pub fn events(mut datagram: &[u8]) -> Vec<Event> {
    const HEADER: usize = 16;
    let mut events = Vec::new();
    while let Some((length, kind)) = header(datagram) {
        let Some(message) = datagram
            .get(..length)
            .filter(|message| message.len() >= HEADER)
        else {
            break;
        };
        let index = message
            .get(HEADER + 4..HEADER + 8)
            .and_then(|b| b.try_into().ok());
        if let Some(event) = index.and_then(|index| event(kind, u32::from_ne_bytes(index)))
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

fn event(kind: u16, ifindex: u32) -> Option<Event> {
    Some(match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => Event::Link(ifindex),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Event::Address(ifindex),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => Event::Neighbour(ifindex),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => Event::Route,
        libc::RTM_NEWQDISC | libc::RTM_DELQDISC | libc::RTM_NEWTFILTER | libc::RTM_DELTFILTER => {
            Event::TrafficControl(ifindex)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
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
        datagram.extend(message(libc::RTM_DELNEIGH, 9));
        datagram.extend(message(libc::RTM_NEWNSID, 1));
        assert_eq!(events(&datagram), [Event::Link(7), Event::Neighbour(9)]);
    }

    #[test]
    fn a_torn_datagram_ends_where_it_is_torn() {
        let mut datagram = message(libc::RTM_NEWLINK, 7);
        datagram.extend(&message(libc::RTM_NEWLINK, 8)[..20]);
        assert_eq!(events(&datagram), [Event::Link(7)]);
        assert_eq!(events(&[0; 64]), []);
    }
}
