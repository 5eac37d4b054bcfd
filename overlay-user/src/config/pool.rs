//! The subnets of a network that nodes may lease, for both address families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A network cut into equal subnets, of which nodes may lease those from `min` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetPool {
    network: IpNet,
    subnet_len: u8,
    min: u128,
    max: u128,
}

/// Why a network cannot be cut as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The network has no room for four subnets of a useful size.
    #[error("the network {network} is too small: the longest useful prefix is /{longest}")]
    NetworkTooSmall {
        /// The network as configured.
        network: IpNet,
        /// Longest prefix length that is allowed.
        longest: u8,
    },
    /// A node's subnet could not hold a gateway and a pod.
    #[error("SubnetLen {len} is too long: at most {longest} leaves room for a gateway and pods")]
    SubnetTooLong {
        /// The requested length.
        len: u8,
        /// Longest prefix length that is allowed.
        longest: u8,
    },
    /// The network would hold fewer than four subnets.
    #[error(
        "SubnetLen {len} is too short: {network} must hold at least four subnets, so use \
        {shortest} or more"
    )]
    SubnetTooShort {
        /// The requested length.
        len: u8,
        /// The network as configured.
        network: IpNet,
        /// Shortest prefix length that is allowed.
        shortest: u8,
    },
    /// A bound of the range is not in the network.
    #[error("{bound} {address} is not inside the network {network}")]
    Outside {
        /// `SubnetMin` or `SubnetMax`.
        bound: &'static str,
        /// The bound's value.
        address: IpAddr,
        /// The network as configured.
        network: IpNet,
    },
    /// A bound of the range is not the first address of a subnet.
    #[error("{bound} {address} is not the first address of a /{len} subnet")]
    Unaligned {
        /// `SubnetMin` or `SubnetMax`.
        bound: &'static str,
        /// The bound's value.
        address: IpAddr,
        /// The subnets' prefix length.
        len: u8,
    },
    /// The range is empty.
    #[error("SubnetMin {min} is above SubnetMax {max}, so there is no subnet to lease")]
    Empty {
        /// The lower bound.
        min: IpAddr,
        /// The upper bound.
        max: IpAddr,
    },
}

/// flannel's limits on prefix lengths, which differ between the address families.
struct Limits {
    longest_network: u8,
    longest_subnet: u8,
    default_subnet: u8,
}

impl Limits {
    fn of(network: &IpNet) -> Self {
        match network {
            IpNet::V4(_) => Self {
                longest_network: 28,
                longest_subnet: 30,
                default_subnet: 24,
            },
            IpNet::V6(_) => Self {
                longest_network: 124,
                longest_subnet: 126,
                default_subnet: 64,
            },
        }
    }
}

impl SubnetPool {
    /// Checks the values and fills in the absent ones. Subnets default to /24 (IPv6: /64), or to a
    /// quarter of a smaller network. The range defaults to all subnets but the first, because the
    /// first one contains the network's own address.
    ///
    /// # Errors
    /// A [`PoolError`] that names the setting at fault.
    pub fn new(
        network: IpNet,
        subnet_len: Option<u8>,
        min: Option<IpAddr>,
        max: Option<IpAddr>,
    ) -> Result<Self, PoolError> {
        let network = network.trunc();
        let limits = Limits::of(&network);
        let shortest = network.prefix_len().saturating_add(2);
        let len = match subnet_len {
            Some(len) if len > limits.longest_subnet => {
                return Err(PoolError::SubnetTooLong {
                    len,
                    longest: limits.longest_subnet,
                });
            }
            Some(len) if len < shortest => {
                return Err(PoolError::SubnetTooShort {
                    len,
                    network,
                    shortest,
                });
            }
            Some(len) => len,
            None if network.prefix_len() > limits.longest_network => {
                return Err(PoolError::NetworkTooSmall {
                    network,
                    longest: limits.longest_network,
                });
            }
            None => limits.default_subnet.max(shortest),
        };
        let step = 1u128 << (network.max_prefix_len() - len);
        let bound = |bound, address: Option<IpAddr>, otherwise| match address {
            None => Ok(otherwise),
            Some(address) if !network.contains(&address) => Err(PoolError::Outside {
                bound,
                address,
                network,
            }),
            Some(address) if !number(address).is_multiple_of(step) => Err(PoolError::Unaligned {
                bound,
                address,
                len,
            }),
            Some(address) => Ok(number(address)),
        };
        let min = bound("SubnetMin", min, number(network.network()) + step)?;
        let max = bound("SubnetMax", max, number(network.broadcast()) - (step - 1))?;
        let pool = Self {
            network,
            subnet_len: len,
            min,
            max,
        };
        if min > max {
            return Err(PoolError::Empty {
                min: pool.min(),
                max: pool.max(),
            });
        }
        Ok(pool)
    }

    /// The whole network, host bits cleared.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Prefix length of every node's subnet.
    #[must_use]
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }

    /// First address of the first subnet that may be leased.
    #[must_use]
    pub fn min(&self) -> IpAddr {
        self.address(self.min)
    }

    /// First address of the last subnet that may be leased.
    #[must_use]
    pub fn max(&self) -> IpAddr {
        self.address(self.max)
    }

    /// Whether `subnet` may be leased: whether its size is right, and it is aligned and in range.
    #[must_use]
    pub fn allows(&self, subnet: &IpNet) -> bool {
        self.network.contains(subnet)
            && subnet.prefix_len() == self.subnet_len
            && *subnet == subnet.trunc()
            && (self.min..=self.max).contains(&number(subnet.network()))
    }

    /// The subnets that may be leased, lowest first.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + '_ {
        let step = 1u128 << (self.network.max_prefix_len() - self.subnet_len);
        std::iter::successors(Some(self.min), move |at| at.checked_add(step))
            .take_while(|at| *at <= self.max)
            .filter_map(|at| IpNet::new(self.address(at), self.subnet_len).ok())
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.network {
            // The numbers of an IPv4 pool are those of IPv4 addresses, so the cast loses no bits.
            IpNet::V4(_) => Ipv4Addr::from_bits(number as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from_bits(number).into(),
        }
    }
}

/// An address as a number, so that both families use the same arithmetic.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(network: &str) -> Result<SubnetPool, PoolError> {
        SubnetPool::new(network.parse().expect("a network"), None, None, None)
    }

    #[test]
    fn defaults_are_flannels() {
        for (network, len, min, max) in [
            ("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
            ("10.3.7.9/16", 24, "10.3.1.0", "10.3.255.0"),
            ("10.3.4.0/22", 24, "10.3.5.0", "10.3.7.0"),
            ("10.3.4.0/23", 25, "10.3.4.128", "10.3.5.128"),
            ("10.3.4.0/28", 30, "10.3.4.4", "10.3.4.12"),
            ("0.0.0.0/0", 24, "0.0.1.0", "255.255.255.0"),
            ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
            ("fc00::/63", 65, "fc00:0:0:0:8000::", "fc00::1:8000:0:0:0"),
            ("::/0", 64, "0:0:0:1::", "ffff:ffff:ffff:ffff::"),
        ] {
            let pool = pool(network).expect("a usable network");
            assert_eq!(pool.subnet_len(), len, "{network}");
            assert_eq!(
                pool.min(),
                min.parse::<IpAddr>().expect("an address"),
                "{network}"
            );
            assert_eq!(
                pool.max(),
                max.parse::<IpAddr>().expect("an address"),
                "{network}"
            );
        }
        assert!(matches!(
            pool("10.3.4.0/29"),
            Err(PoolError::NetworkTooSmall { longest: 28, .. })
        ));
        assert!(matches!(
            pool("fc00::/125"),
            Err(PoolError::NetworkTooSmall { longest: 124, .. })
        ));
    }

    #[test]
    fn bounds_and_length_are_checked() {
        let new = |len, min: Option<&str>, max: Option<&str>| {
            let address = |text: &str| text.parse().expect("an address");
            let network = "10.3.0.0/16".parse().expect("a network");
            SubnetPool::new(network, len, min.map(address), max.map(address))
        };
        assert!(new(Some(28), Some("10.3.5.0"), Some("10.3.8.0")).is_ok());
        assert!(matches!(
            new(Some(31), None, None),
            Err(PoolError::SubnetTooLong { .. })
        ));
        assert!(matches!(
            new(Some(17), None, None),
            Err(PoolError::SubnetTooShort { .. })
        ));
        assert!(matches!(
            new(None, Some("10.4.1.0"), None),
            Err(PoolError::Outside { .. })
        ));
        assert!(matches!(
            new(None, None, Some("10.3.1.1")),
            Err(PoolError::Unaligned { .. })
        ));
        assert!(matches!(
            new(None, Some("10.3.9.0"), Some("10.3.8.0")),
            Err(PoolError::Empty { .. })
        ));
    }

    #[test]
    fn subnets_run_from_min_to_max() {
        let pool = pool("10.3.4.0/22").expect("a usable network");
        let subnets: Vec<String> = pool.subnets().map(|subnet| subnet.to_string()).collect();
        assert_eq!(subnets, ["10.3.5.0/24", "10.3.6.0/24", "10.3.7.0/24"]);
        assert!(pool.subnets().all(|subnet| pool.allows(&subnet)));
        for outside in ["10.3.4.0/24", "10.3.5.0/25", "10.3.5.1/24", "10.3.8.0/24"] {
            assert!(
                !pool.allows(&outside.parse().expect("a subnet")),
                "{outside}"
            );
        }
    }
}
