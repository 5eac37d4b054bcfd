//! The addresses of a node's subnet that pods can have, and the order in which they are tried.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Error;

/// All addresses of one subnet except its own, the gateway's and, in IPv4, the broadcast address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    gateway: IpAddr,
    first: u128,
    last: u128,
}

impl Range {
    /// The range of `subnet`, which is written as the gateway's address with the prefix length
    /// (`10.244.1.1/24`), as `subnet.env` has it.
    ///
    /// # Errors
    ///
    /// [`Error::TooSmall`] for a subnet of fewer than four addresses.
    pub fn new(subnet: IpNet) -> Result<Self, Error> {
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(Error::TooSmall(subnet));
        }
        let broadcast = u128::from(subnet.addr().is_ipv4());
        Ok(Self {
            gateway: subnet.addr(),
            first: number(subnet.network()) + 1,
            last: number(subnet.broadcast()) - broadcast,
        })
    }

    /// Whether `address` can come from this range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.gateway.is_ipv4()
            && address != self.gateway
            && (self.first..=self.last).contains(&number(address))
    }

    /// The number of pods for which there are addresses.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        let gateway = (self.first..=self.last).contains(&number(self.gateway));
        self.last - self.first + 1 - u128::from(gateway)
    }

    /// All addresses, each once, from the one after `last`, the address given out last, to `last`
    /// itself.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let last = match last {
            Some(last) if self.contains(last) => number(last),
            _ => self.last,
        };
        // The range does not start at the number after `last`, because the highest of all addresses
        // has no successor.
        (last..=self.last)
            .skip(1)
            .chain(self.first..=last)
            .map(|number| self.address(number))
            .filter(|address| *address != self.gateway)
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.gateway {
            IpAddr::V4(_) => {
                let [.., a, b, c, d] = number.to_be_bytes();
                Ipv4Addr::new(a, b, c, d).into()
            }
            IpAddr::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{}",
            self.address(self.first),
            self.address(self.last)
        )
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> Range {
        Range::new(subnet.parse().expect("a subnet")).expect("large enough")
    }

    fn after(range: &Range, last: &str) -> Vec<String> {
        range
            .after(last.parse().ok())
            .map(|address| address.to_string())
            .collect()
    }

    #[test]
    fn network_gateway_and_broadcast_are_left_out() {
        let range = range("10.0.0.1/29");
        assert_eq!(range.to_string(), "10.0.0.1-10.0.0.6");
        assert_eq!(range.capacity(), 5);
        assert_eq!(
            after(&range, ""),
            ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
        for outside in ["10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.1.2", "::2"] {
            assert!(
                !range.contains(outside.parse().expect("an address")),
                "{outside}"
            );
        }
    }

    #[test]
    fn the_round_ends_where_it_began() {
        let range = range("10.0.0.1/29");
        assert_eq!(
            after(&range, "10.0.0.4"),
            ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        );
        assert_eq!(after(&range, "10.0.0.6"), after(&range, ""));
        assert_eq!(
            after(&range, "10.9.9.9"),
            after(&range, ""),
            "an address of an old subnet"
        );
    }

    #[test]
    fn ipv6_has_no_broadcast_address() {
        let range = range("fd00:1::1/126");
        assert_eq!(after(&range, ""), ["fd00:1::2", "fd00:1::3"]);
        assert_eq!(self::range("fd00:1::1/64").capacity(), (1 << 64) - 2);
    }

    #[test]
    fn subnets_of_two_addresses_are_refused() {
        for subnet in ["10.0.0.1/31", "10.0.0.1/32", "fd00::1/127"] {
            assert!(
                Range::new(subnet.parse().expect("a subnet")).is_err(),
                "{subnet}"
            );
        }
        assert_eq!(range("10.0.0.1/30").capacity(), 1);
    }
}
