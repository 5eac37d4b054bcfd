//! Conversion of user space's addresses, whose family is a value, to the maps' addresses, whose
//! family is a type.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::Pod as Plain;
use ipnet::IpNet;
use overlay_common::{Family, V4, V6};

/// The names of one family's maps: see [`overlay_common::schema`].
#[derive(Clone, Copy, Debug)]
pub struct MapNames {
    /// [`Config`](overlay_common::schema::Config).
    pub config: &'static str,
    /// [`Endpoint`](overlay_common::schema::Endpoint)s.
    pub endpoints: &'static str,
    /// [`PodEntry`](overlay_common::schema::PodEntry)s.
    pub pods: &'static str,
    /// The devices of pods, by their index.
    pub devices: &'static str,
    /// [`PeerEntry`](overlay_common::schema::PeerEntry)s.
    pub peers: &'static str,
    /// [`Vtep`](overlay_common::schema::Vtep)s.
    pub vteps: &'static str,
    /// [`Flow`](overlay_common::schema::Flow)s.
    pub flows: &'static str,
    /// [`FlowNews`](overlay_common::schema::FlowNews).
    pub flow_news: &'static str,
}

impl MapNames {
    /// The maps whose capacity can be chosen.
    #[must_use]
    pub const fn hashes(&self) -> [&'static str; 6] {
        [
            self.endpoints,
            self.pods,
            self.devices,
            self.peers,
            self.vteps,
            self.flows,
        ]
    }

    /// All maps of the family.
    #[must_use]
    pub const fn all(&self) -> [&'static str; 8] {
        [
            self.config,
            self.endpoints,
            self.pods,
            self.devices,
            self.peers,
            self.vteps,
            self.flows,
            self.flow_news,
        ]
    }
}

/// A family whose addresses user space can convert.
pub trait UserFamily: Family<Addr: Plain> {
    /// Maps of the family.
    const MAPS: MapNames;

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
    const MAPS: MapNames = MapNames {
        config: "ov_config4",
        endpoints: "ov_endpoints4",
        pods: "ov_pods4",
        devices: "ov_devices4",
        peers: "ov_peers4",
        vteps: "ov_vteps4",
        flows: "ov_flows4",
        flow_news: "ov_flow_news4",
    };

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

impl UserFamily for V6 {
    const MAPS: MapNames = MapNames {
        config: "ov_config6",
        endpoints: "ov_endpoints6",
        pods: "ov_pods6",
        devices: "ov_devices6",
        peers: "ov_peers6",
        vteps: "ov_vteps6",
        flows: "ov_flows6",
        flow_news: "ov_flow_news6",
    };

    fn from_ip(address: IpAddr) -> Option<[u8; 16]> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.octets()),
        }
    }

    fn to_ip(address: [u8; 16]) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(address))
    }

    fn netmask(prefix_len: u8) -> [u8; 16] {
        u128::MAX
            .checked_shl(128 - u32::from(prefix_len))
            .unwrap_or(0)
            .to_be_bytes()
    }

    fn prefix_len(mask: [u8; 16]) -> u8 {
        u128::from_be_bytes(mask).leading_ones() as u8
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
        for len in 0..=128 {
            assert_eq!(V6::prefix_len(V6::netmask(len)), len);
        }
        assert_eq!(V6::netmask(68)[7..10], [255, 0xf0, 0]);
    }

    #[test]
    fn names_of_maps_fit_the_kernel_and_tell_the_family() {
        for (names, family) in [(V4::MAPS, '4'), (V6::MAPS, '6')] {
            for name in names.all() {
                assert!(name.starts_with("ov_") && name.ends_with(family), "{name}");
                assert!(name.len() <= 15, "{name}");
            }
        }
    }
}
