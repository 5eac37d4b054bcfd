//! Follows the underlay's device through renaming, another MTU, and the loss of its address.
//!
//! The overlay does not move to another device when the address is missing for a moment, as while a
//! DHCP lease is renewed, because every peer would have to follow. Nor does it move to an address
//! or a default route that is added later.

use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::kernel::interface::Underlay;

/// Longest absence of the address before another address of the same device is taken.
const READDRESSED: Duration = Duration::from_secs(3);
/// Longest absence of the address before another device is chosen.
const GRACE: Duration = Duration::from_secs(15);

/// The state of the underlay's device in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Name and MTU; none where the device does not exist.
    pub device: Option<(String, u32)>,
    /// Addresses, with the prefixes on the link.
    pub addresses: Vec<IpNet>,
}

/// The device that the overlay runs over.
#[derive(Clone, Debug)]
pub struct Footing {
    current: Underlay,
    /// What was chosen at the start.
    first: Underlay,
    /// The device's prefixes when the device was last seen with this node's address.
    on_link: Vec<IpNet>,
    /// The time at which the device or its address was first missing.
    lost: Option<Instant>,
}

/// What to do about the underlay's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stay,
    /// Wait for the address to come back.
    Wait,
    /// Wait, unless the choice is the same device with another address, or another device of its
    /// name.
    Readdress,
    /// Choose anew, and accept any choice.
    Choose,
    /// Go back if the first device is the choice again.
    GoBack,
}

impl Footing {
    /// A footing on the device chosen at the start.
    pub fn new(underlay: Underlay) -> Self {
        Self {
            first: underlay.clone(),
            current: underlay,
            on_link: Vec::new(),
            lost: None,
        }
    }

    /// The device.
    pub fn underlay(&self) -> &Underlay {
        &self.current
    }

    /// The prefixes of the device: the addresses in them are reached without a router. A device
    /// that has lost its address for a moment keeps those that it had.
    pub fn on_link(&self) -> &[IpNet] {
        &self.on_link
    }

    /// Takes the prefixes from what was seen of the device, if it has its address. True if it has.
    pub fn learn_link(&mut self, seen: &Sighting) -> bool {
        let mut addresses = seen.addresses.iter();
        let has_address = addresses.any(|it| it.addr() == self.current.address);
        if has_address {
            self.on_link.clone_from(&seen.addresses);
        }
        has_address
    }

    /// Takes what was seen into account; `None` where the kernel did not tell, which means nothing.
    pub fn judge(&mut self, seen: Option<&Sighting>, now: Instant) -> Step {
        let Some(seen) = seen else {
            return Step::Stay;
        };
        let has_address = self.learn_link(seen);
        match &seen.device {
            Some((name, mtu)) if has_address && *mtu != 0 => {
                if (name, *mtu) != (&self.current.name, self.current.mtu) {
                    tracing::warn!(device = name, mtu, "the underlay changed");
                }
                (self.current.name, self.current.mtu) = (name.clone(), *mtu);
                self.lost = None;
                if self.is_at_first() {
                    Step::Stay
                } else {
                    Step::GoBack
                }
            }
            _ => {
                let lost = *self.lost.get_or_insert(now);
                let gone = now.duration_since(lost);
                if gone >= GRACE {
                    Step::Choose
                } else if gone >= READDRESSED || seen.device.is_none() {
                    Step::Readdress
                } else {
                    Step::Wait
                }
            }
        }
    }

    /// Takes a new choice, made because of `step`. True if that is another device or address.
    pub fn take(&mut self, step: Step, choice: Underlay) -> bool {
        let is_refused = match step {
            Step::GoBack => !is_same(&choice, &self.first),
            Step::Readdress => {
                choice.ifindex != self.current.ifindex && choice.name != self.current.name
            }
            _ => false,
        };
        if is_refused {
            return false;
        }
        let moves = choice != self.current;
        if is_same(&choice, &self.first) || step == Step::Readdress {
            self.first = choice.clone();
        }
        self.current = choice;
        self.lost = None;
        if moves {
            self.on_link.clear();
        }
        moves
    }

    /// Whether the agent waits for a missing address; such a wait ends without any event.
    pub fn is_waiting(&self) -> bool {
        self.lost.is_some()
    }

    fn is_at_first(&self) -> bool {
        is_same(&self.current, &self.first)
    }
}

/// A device that is made anew has another index and the same name.
fn is_same(one: &Underlay, other: &Underlay) -> bool {
    (&one.name, one.public_address) == (&other.name, other.public_address)
        || one.ifindex == other.ifindex && one.public_address == other.public_address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underlay(name: &str, ifindex: u32) -> Underlay {
        let address = [192, 0, 2, u8::try_from(ifindex).expect("small")].into();
        Underlay {
            name: name.to_owned(),
            ifindex,
            mtu: 1500,
            is_ethernet: true,
            address,
            public_address: address,
        }
    }

    fn sighting(underlay: &Underlay) -> Sighting {
        Sighting {
            device: Some((underlay.name.clone(), underlay.mtu)),
            addresses: vec![IpNet::new(underlay.address, 24).expect("a prefix")],
        }
    }

    #[test]
    fn a_moment_without_an_address_is_no_reason_to_move() {
        let (eth0, start) = (underlay("eth0", 2), Instant::now());
        let mut footing = Footing::new(eth0.clone());
        let gone = Sighting {
            addresses: Vec::new(),
            ..sighting(&eth0)
        };
        assert_eq!(footing.judge(Some(&gone), start), Step::Wait);
        assert_eq!(footing.judge(None, start + GRACE), Step::Stay, "no answer");
        let later = start + GRACE - Duration::from_secs(1);
        assert_eq!(footing.judge(Some(&gone), later), Step::Readdress);
        assert!(!footing.take(Step::Readdress, underlay("eth1", 3)));
        assert_eq!(footing.judge(Some(&sighting(&eth0)), later), Step::Stay);
        assert_eq!(
            footing.judge(Some(&gone), start + GRACE),
            Step::Wait,
            "anew"
        );
    }

    #[test]
    fn the_link_is_known_while_the_address_is_gone_for_a_moment() {
        let (eth0, start) = (underlay("eth0", 2), Instant::now());
        let mut footing = Footing::new(eth0.clone());
        let seen = sighting(&eth0);
        footing.judge(Some(&seen), start);
        assert_eq!(footing.on_link(), seen.addresses);
        let gone = Sighting {
            addresses: Vec::new(),
            ..seen.clone()
        };
        footing.judge(Some(&gone), start);
        assert_eq!(footing.on_link(), seen.addresses);
        footing.take(Step::Choose, underlay("eth1", 3));
        assert_eq!(footing.on_link(), []);
    }

    #[test]
    fn another_address_of_the_same_device_is_taken_soon() {
        let (eth0, start) = (underlay("eth0", 2), Instant::now());
        let mut footing = Footing::new(eth0.clone());
        let address = [192, 0, 2, 77].into();
        let readdressed = Underlay {
            address,
            public_address: address,
            ..eth0
        };
        let seen = sighting(&readdressed);
        assert_eq!(footing.judge(Some(&seen), start), Step::Wait);
        let later = start + READDRESSED;
        assert_eq!(footing.judge(Some(&seen), later), Step::Readdress);
        assert!(footing.take(Step::Readdress, readdressed));
        assert_eq!(footing.judge(Some(&seen), later), Step::Stay);
    }

    #[test]
    fn a_device_that_is_made_anew_is_taken_at_once() {
        let (eth0, start) = (underlay("eth0", 2), Instant::now());
        let mut footing = Footing::new(eth0.clone());
        let gone = Sighting::default();
        assert_eq!(footing.judge(Some(&gone), start), Step::Readdress);
        assert!(footing.take(Step::Readdress, Underlay { ifindex: 9, ..eth0 }));
    }

    #[test]
    fn a_lost_address_is_replaced_in_the_end_and_taken_back_when_it_returns() {
        let (eth0, eth1) = (underlay("eth0", 2), underlay("eth1", 3));
        let start = Instant::now();
        let mut footing = Footing::new(eth0.clone());
        let gone = Sighting::default();
        assert_eq!(footing.judge(Some(&gone), start), Step::Readdress);
        assert!(!footing.take(Step::Readdress, eth1.clone()));
        assert_eq!(footing.judge(Some(&gone), start + GRACE), Step::Choose);
        assert!(footing.take(Step::Choose, eth1.clone()));
        let seen = sighting(&eth1);
        assert_eq!(footing.judge(Some(&seen), start + GRACE), Step::GoBack);
        assert!(!footing.take(Step::GoBack, eth1), "still the choice");
        let again = Underlay { ifindex: 9, ..eth0 };
        assert!(footing.take(Step::GoBack, again.clone()));
        assert_eq!(footing.judge(Some(&sighting(&again)), start), Step::Stay);
    }
}
