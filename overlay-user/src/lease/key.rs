//! The name of a lease: its subnet, spelt `10.5.34.0-24`, or `10.5.34.0-24&fd00:34::-64` in dual
//! stack.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// The subnets of a lease as flannel spells them in the last part of an etcd key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubnetKey {
    /// The IPv4 subnet.
    pub subnet: IpNet,
    /// The IPv6 subnet of a dual-stack lease.
    pub subnet_v6: Option<IpNet>,
}

/// Text that names no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a subnet key: {0:?} (want one such as 10.5.34.0-24, with no host bits set)")]
pub struct ParseKeyError(pub String);

impl SubnetKey {
    /// Whether any address belongs to both this key and `subnet`.
    #[must_use]
    pub fn overlaps(&self, subnet: &IpNet) -> bool {
        let share = |own: &IpNet| own.contains(subnet) || subnet.contains(own);
        share(&self.subnet) || self.subnet_v6.as_ref().is_some_and(share)
    }
}

impl From<IpNet> for SubnetKey {
    fn from(subnet: IpNet) -> Self {
        Self {
            subnet,
            subnet_v6: None,
        }
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.subnet.addr(), self.subnet.prefix_len())?;
        match self.subnet_v6 {
            Some(v6) => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

impl FromStr for SubnetKey {
    type Err = ParseKeyError;

    /// Stricter than flannel, whose pattern is not anchored at its start: one subnet has one
    /// spelling.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (v4, v6) = match text.split_once('&') {
                Some((v4, v6)) => (v4, Some(v6)),
                None => (text, None),
            };
            let subnet = net::<Ipv4Addr>(v4)?;
            let subnet_v6 = match v6 {
                Some(v6) => Some(net::<Ipv6Addr>(v6)?),
                None => None,
            };
            let aligned = |net: &IpNet| *net == net.trunc();
            (aligned(&subnet) && subnet_v6.as_ref().is_none_or(aligned))
                .then_some(Self { subnet, subnet_v6 })
        };
        parse().ok_or_else(|| ParseKeyError(text.to_owned()))
    }
}

/// Reads `10.5.34.0-24`. Not by way of `IpNet`, which lets leading zeros pass.
fn net<A: FromStr + Into<IpAddr>>(text: &str) -> Option<IpNet> {
    let (address, len) = text.split_once('-')?;
    let plain =
        len.bytes().all(|byte| byte.is_ascii_digit()) && (len == "0" || !len.starts_with('0'));
    if !plain {
        return None;
    }
    IpNet::new(address.parse::<A>().ok()?.into(), len.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip() {
        for text in [
            "10.12.13.0-24",
            "0.0.0.0-0",
            "10.12.13.0-24&fd00:12:13::-56",
        ] {
            let key: SubnetKey = text.parse().expect(text);
            assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn bad_keys_are_refused() {
        for text in [
            "",
            "10.12.13.0",
            "10.12.13.0-24hi",
            "10.12.13.300-24",
            "10.12.13.0-33",
            "10.12.13.0-024",
            "10.12.13.0-+24",
            "10.12.13.0-",
            "10.12.13.1-24",
            "x10.12.13.0-24",
            "010.12.13.0-24",
            "&2001::-56",
            "10.12.13.0-24&",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::1-56",
            "10.12.13.0-24&10.1.0.0-16",
            "10.12.13.0/24",
            "10.12.13.0-24-24",
        ] {
            assert!(text.parse::<SubnetKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn overlap_is_seen_from_both_sides() {
        let key: SubnetKey = "10.0.4.0-22&fd00::-64".parse().expect("a key");
        for (subnet, overlaps) in [
            ("10.0.5.0/24", true),
            ("10.0.0.0/16", true),
            ("10.0.4.0/22", true),
            ("10.0.8.0/22", false),
            ("fd00::1:0:0/112", true),
            ("fd00:1::/64", false),
        ] {
            assert_eq!(
                key.overlaps(&subnet.parse().expect("a subnet")),
                overlaps,
                "{subnet}"
            );
        }
    }
}
