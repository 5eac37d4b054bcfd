//! The name of a lease: its subnet, spelt `10.5.34.0-24`, or `10.5.34.0-24&fd00:34::-64` in dual
//! stack.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::per_family::PerFamily;

/// The subnets of a lease as flannel spells them in the last part of an etcd key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubnetKey(pub PerFamily<IpNet>);

/// The error for a text that names no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a subnet key: {0:?} (want one such as 10.5.34.0-24, with no host bits set)")]
pub struct ParseKeyError(pub String);

impl SubnetKey {
    /// Whether any address belongs to both keys' subnets.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let shared = |own: &IpNet, their: &IpNet| own.contains(their) || their.contains(own);
        let theirs = |own: &IpNet| other.0.like(own.addr());
        (self.0.iter()).any(|own| theirs(own).is_some_and(|their| shared(own, their)))
    }
}

impl From<IpNet> for SubnetKey {
    fn from(subnet: IpNet) -> Self {
        Self(subnet.into())
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, subnet) in self.0.iter().enumerate() {
            let and = if index == 0 { "" } else { "&" };
            write!(f, "{and}{}-{}", subnet.addr(), subnet.prefix_len())?;
        }
        Ok(())
    }
}

impl FromStr for SubnetKey {
    type Err = ParseKeyError;

    /// Accepts only one spelling of a subnet. Stricter than flannel, whose pattern is not anchored
    /// at its start.
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
            let subnets = PerFamily::new(Some(subnet), subnet_v6)?;
            (subnets.iter().all(|net| *net == net.trunc())).then_some(Self(subnets))
        };
        parse().ok_or_else(|| ParseKeyError(text.to_owned()))
    }
}

/// Reads `10.5.34.0-24`. `IpNet` does not read the text, because `IpNet` accepts leading zeros.
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
            let other = SubnetKey::from(subnet.parse::<IpNet>().expect("a subnet"));
            assert_eq!(key.overlaps(&other), overlaps, "{subnet}");
            assert_eq!(other.overlaps(&key), overlaps, "{subnet}");
        }
        let dual: SubnetKey = "10.0.8.0-22&fd00::-48".parse().expect("a key");
        assert!(key.overlaps(&dual), "by IPv6 alone");
    }
}
