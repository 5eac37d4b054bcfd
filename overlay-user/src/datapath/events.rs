//! Reads the programs' events about single packets: see [`overlay_common::event`].

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use nix::net::if_::if_indextoname;
use overlay_common::event::Event;
use overlay_common::packet::{ETHERNET_LEN, Ethernet, Frame};
use overlay_common::{Hook, V4, V6, Verdict};

use super::Error;
use super::family::UserFamily;
use super::maps::{self, failed};
use super::pins::Pins;

/// The pinned ring, and the counter of events that found the ring full. Each event is delivered to
/// one reader only.
pub struct Events {
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

/// An event in words of user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketEvent {
    /// The hook of the program.
    pub hook: Hook,
    /// How the packet's visit ended.
    pub verdict: Verdict,
    /// The interface that the program sits on.
    pub ifindex: u32,
    /// Sender of the outermost IP header; `None` where there is no such header, as with ARP.
    pub source: Option<IpAddr>,
    /// Receiver, likewise.
    pub destination: Option<IpAddr>,
    /// The record itself: time, length, the frame's beginning.
    pub event: Event,
}

impl Events {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// [`Error::Map`] where a pin is missing or holds something else.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            ring: maps::open(pins, maps::EVENTS)?,
            lost: maps::open(pins, maps::EVENTS_LOST)?,
        })
    }

    /// How many events have found no room, summed over all CPUs.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn lost(&self) -> Result<u64, Error> {
        let counts = self.lost.get(&0, 0);
        let counts = counts.map_err(failed("read", maps::EVENTS_LOST))?;
        Ok(counts.iter().sum())
    }
}

impl Iterator for Events {
    type Item = PacketEvent;

    /// The next event, if one waits. Events in the form of another build are skipped.
    fn next(&mut self) -> Option<PacketEvent> {
        loop {
            let record = self.ring.next()?;
            if let Some(told) = Event::read(&record).and_then(PacketEvent::new) {
                return Some(told);
            }
        }
    }
}

/// Readable when events wait.
impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl PacketEvent {
    /// `None` for numbers that this build does not know.
    fn new(event: Event) -> Option<Self> {
        let frame = Frame::new(event.head());
        let ends = ends::<V4>(&frame).or_else(|| ends::<V6>(&frame));
        Some(Self {
            hook: Hook::ALL
                .into_iter()
                .find(|hook| *hook as u32 == event.hook)?,
            verdict: Verdict::from_number(event.verdict)?,
            ifindex: event.ifindex,
            source: ends.map(|(source, _)| source),
            destination: ends.map(|(_, destination)| destination),
            event,
        })
    }

    /// The interface's name, or its number where it is gone.
    #[must_use]
    pub fn interface(&self) -> String {
        let name = if_indextoname(self.ifindex).ok();
        let name = name.and_then(|name| name.into_string().ok());
        name.unwrap_or_else(|| format!("number {}", self.ifindex))
    }
}

/// Sender and receiver by the frame's IP header; `None` where there is none of this family.
fn ends<F: UserFamily>(frame: &Frame<'_>) -> Option<(IpAddr, IpAddr)> {
    let ethernet = Ethernet::parse(frame, 0)?;
    let ip = (ethernet.ethertype == F::ETHERTYPE).then(|| F::parse(frame, ETHERNET_LEN))??;
    Some((F::to_ip(ip.source), F::to_ip(ip.destination)))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    /// A record about a frame with these words from the IP header on.
    fn event(ethertype: u16, ip: &[u8]) -> Event {
        let mut event = Event {
            hook: Hook::NetIn as u32,
            verdict: Verdict::UnknownVtep as u32,
            ifindex: 7,
            ..Event::read(&[0; size_of::<Event>()]).expect("a record")
        };
        let frame = [&[0; 12][..], &ethertype.to_be_bytes(), ip].concat();
        event.head[..frame.len()].copy_from_slice(&frame);
        event.len = frame.len().try_into().expect("a short frame");
        event
    }

    #[test]
    fn an_event_is_told_in_the_addresses_of_its_family() {
        let ipv4 = [&[0x45; 12][..], &[192, 0, 2, 1, 192, 0, 2, 2]].concat();
        let told = PacketEvent::new(event(0x0800, &ipv4)).expect("known numbers");
        assert_eq!(
            (told.hook, told.verdict),
            (Hook::NetIn, Verdict::UnknownVtep)
        );
        assert_eq!(told.source, "192.0.2.1".parse().ok());
        assert_eq!(told.destination, "192.0.2.2".parse().ok());

        let address: Ipv6Addr = "fd00::1".parse().expect("an address");
        let ipv6 = [&[0x60; 8][..], &address.octets(), &[0; 16]].concat();
        let told = PacketEvent::new(event(0x86dd, &ipv6)).expect("known numbers");
        assert_eq!(told.source, Some(address.into()));

        let told = PacketEvent::new(event(0x0806, &ipv4)).expect("known numbers");
        assert_eq!((told.source, told.destination), (None, None));
    }

    #[test]
    fn what_another_build_tells_is_passed_over() {
        assert_eq!(Event::read(&[0; 8]), None);
        let mut event = event(0x0800, &[]);
        event.hook = 9999;
        assert_eq!(PacketEvent::new(event), None);
    }
}
