//! Values that exist once for each address family in use: networks, subnets, addresses.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// One value for IPv4, for IPv6, or for each of both: there is always at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PerFamily<T> {
    /// IPv4 alone.
    V4(T),
    /// IPv6 alone.
    V6(T),
    /// Dual stack.
    Both {
        /// For IPv4.
        v4: T,
        /// For IPv6.
        v6: T,
    },
}

impl<T> PerFamily<T> {
    /// The given values; `None` where there is no value of either family.
    #[must_use]
    pub fn new(v4: Option<T>, v6: Option<T>) -> Option<Self> {
        match (v4, v6) {
            (Some(v4), Some(v6)) => Some(Self::Both { v4, v6 }),
            (Some(v4), None) => Some(Self::V4(v4)),
            (None, Some(v6)) => Some(Self::V6(v6)),
            (None, None) => None,
        }
    }

    /// The value for IPv4.
    #[must_use]
    pub fn v4(&self) -> Option<&T> {
        match self {
            Self::V4(v4) | Self::Both { v4, .. } => Some(v4),
            Self::V6(_) => None,
        }
    }

    /// The value for IPv6.
    #[must_use]
    pub fn v6(&self) -> Option<&T> {
        match self {
            Self::V6(v6) | Self::Both { v6, .. } => Some(v6),
            Self::V4(_) => None,
        }
    }

    /// The value for the family of `address`.
    #[must_use]
    pub fn like(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(_) => self.v4(),
            IpAddr::V6(_) => self.v6(),
        }
    }

    /// The value for IPv4, else the one for IPv6: for code that serves one family only.
    #[must_use]
    pub fn first(&self) -> &T {
        match self {
            Self::V4(it) | Self::V6(it) | Self::Both { v4: it, .. } => it,
        }
    }

    /// All values, IPv4 before IPv6.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.v4().into_iter().chain(self.v6())
    }

    /// Applies `change` to each value.
    #[must_use]
    pub fn map<U>(&self, mut change: impl FnMut(&T) -> U) -> PerFamily<U> {
        match self {
            Self::V4(v4) => PerFamily::V4(change(v4)),
            Self::V6(v6) => PerFamily::V6(change(v6)),
            Self::Both { v4, v6 } => PerFamily::Both {
                v4: change(v4),
                v6: change(v6),
            },
        }
    }

    /// Applies `change` to each value; returns the first error, if any.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn try_map<U, E>(
        &self,
        mut change: impl FnMut(&T) -> Result<U, E>,
    ) -> Result<PerFamily<U>, E> {
        Ok(match self {
            Self::V4(v4) => PerFamily::V4(change(v4)?),
            Self::V6(v6) => PerFamily::V6(change(v6)?),
            Self::Both { v4, v6 } => PerFamily::Both {
                v4: change(v4)?,
                v6: change(v6)?,
            },
        })
    }
}

impl From<IpAddr> for PerFamily<IpAddr> {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4(address),
            IpAddr::V6(_) => Self::V6(address),
        }
    }
}

impl From<IpNet> for PerFamily<IpNet> {
    fn from(net: IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4(net),
            IpNet::V6(_) => Self::V6(net),
        }
    }
}

/// The values for IPv4 are compared first.
impl<T: Ord> Ord for PerFamily<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.v4(), self.v6()).cmp(&(other.v4(), other.v6()))
    }
}

impl<T: Ord> PartialOrd for PerFamily<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Both values, separated by a comma.
impl<T: fmt::Display> fmt::Display for PerFamily<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(it) | Self::V6(it) => it.fmt(f),
            Self::Both { v4, v6 } => write!(f, "{v4},{v6}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a subnet")
    }

    #[test]
    fn each_family_finds_its_own() {
        let (v4, v6) = (net("10.0.4.0/24"), net("fd00::/64"));
        assert_eq!(PerFamily::new(None::<IpNet>, None), None);
        assert_eq!(PerFamily::new(Some(v4), None), Some(PerFamily::from(v4)));
        assert_eq!(PerFamily::new(None, Some(v6)), Some(PerFamily::from(v6)));
        let both = PerFamily::new(Some(v4), Some(v6)).expect("both");
        assert_eq!(both.to_string(), "10.0.4.0/24,fd00::/64");
        assert_eq!(
            (both.like(v4.addr()), both.like(v6.addr())),
            (Some(&v4), Some(&v6))
        );
        assert_eq!(
            (PerFamily::from(v6).like(v4.addr()), both.first()),
            (None, &v4)
        );
        assert!(both.iter().eq([&v4, &v6]));
        assert_eq!(both.map(IpNet::prefix_len).v6(), Some(&64));
    }

    #[test]
    fn order_is_that_of_ipv4_first() {
        let (low, high) = (net("10.0.4.0/24"), net("10.0.5.0/24"));
        let v6 = net("fd00::/64");
        let dual = |v4| PerFamily::Both { v4, v6 };
        assert!(PerFamily::V4(low) < dual(low));
        assert!(dual(low) < PerFamily::V4(high));
    }
}
