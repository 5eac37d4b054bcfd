//! From user space's addresses, whose family is a value, to the maps' addresses, whose family is a type.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use overlay_common::{Family, V4};

/// A family whose addresses user space can convert.
pub trait UserFamily: Family {
    /// The map's form of an address; `None` for another family's.
    fn from_ip(address: IpAddr) -> Option<Self::Addr>;
    /// User space's form of an address.
    fn to_ip(address: Self::Addr) -> IpAddr;
    /// The mask of a prefix length.
    fn netmask(prefix_len: u8) -> Self::Addr;
    /// The prefix length of a mask.
    fn prefix_len(mask: Self::Addr) -> u8;

    /// Address and mask of a network; `None` for another family's.
    fn from_net(net: &IpNet) -> Option<(Self::Addr, Self::Addr)> {
        Some((
            Self::from_ip(net.network())?,
            Self::netmask(net.prefix_len()),
        ))
    }
}

impl UserFamily for V4 {
    fn from_ip(address: IpAddr) -> Option<[u8; 4]> {
        match address {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(address: [u8; 4]) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(address))
    }

    fn netmask(prefix_len: u8) -> [u8; 4] {
        u32::MAX
            .checked_shl(32 - u32::from(prefix_len))
            .unwrap_or(0)
            .to_be_bytes()
    }

    fn prefix_len(mask: [u8; 4]) -> u8 {
        u32::from_be_bytes(mask).leading_ones() as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_lengths_agree() {
        for len in 0..=32 {
            assert_eq!(V4::prefix_len(V4::netmask(len)), len);
        }
        assert_eq!(V4::netmask(20), [255, 255, 240, 0]);
    }
}
