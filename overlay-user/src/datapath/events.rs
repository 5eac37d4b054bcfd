//! What the programs tell of single packets: see [`overlay_common::event`].

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use nix::net::if_::if_indextoname;
use overlay_common::event::Event;
use overlay_common::{Hook, Verdict};

use super::Error;
use super::maps::{self, failed};
use super::pins::Pins;

/// The pinned ring, and what found no room in it. Each event goes to one reader: whoever comes
/// first.
pub struct Events {
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

/// An event in words of user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Where.
    pub hook: Hook,
    /// How the packet's visit ended.
    pub verdict: Verdict,
    /// The interface that the program sits on.
    pub ifindex: u32,
    /// Sender of the outermost IP header; `None` where there is no such header, as with ARP.
    pub source: Option<IpAddr>,
    /// Receiver, likewise.
    pub destination: Option<IpAddr>,
    /// The record itself: ports, protocol, length, time.
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
    type Item = Told;

    /// The next event, if one waits. What another build tells in another form is passed over.
    fn next(&mut self) -> Option<Told> {
        loop {
            let record = self.ring.next()?;
            if let Some(told) = Event::read(&record).and_then(Told::new) {
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

impl Told {
    /// `None` for numbers that this build does not know.
    fn new(event: Event) -> Option<Self> {
        let address = |bytes| {
            let address = Ipv6Addr::from_octets(bytes);
            (!address.is_unspecified()).then(|| address.to_canonical())
        };
        Some(Self {
            hook: Hook::ALL
                .into_iter()
                .find(|hook| *hook as u32 == event.hook)?,
            verdict: Verdict::from_number(event.verdict)?,
            ifindex: event.ifindex,
            source: address(event.source),
            destination: address(event.destination),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_in_the_addresses_of_its_family() {
        let mut event = Event {
            hook: Hook::NetIn as u32,
            verdict: Verdict::UnknownVtep as u32,
            ifindex: 7,
            source: Ipv6Addr::from([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201]).octets(),
            ..Event::read(&[0; size_of::<Event>()]).expect("a record")
        };
        let told = Told::new(event).expect("known numbers");
        assert_eq!(
            (told.hook, told.verdict),
            (Hook::NetIn, Verdict::UnknownVtep)
        );
        assert_eq!(told.source, "192.0.2.1".parse().ok());
        assert_eq!(told.destination, None);
        event.source = Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]).octets();
        let told = Told::new(event).expect("known numbers");
        assert_eq!(told.source, "fd00::1".parse().ok());
        assert_eq!(Event::read(&[0; 8]), None);
        event.hook = 9999;
        assert_eq!(Told::new(event), None);
    }
}
