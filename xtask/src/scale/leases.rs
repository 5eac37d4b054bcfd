//! Leases of nodes that do not exist, in flanneld's form. A cluster of this size is routed, so the
//! invented nodes are behind a few routers, each of which is the next hop of its share of the
//! nodes.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

/// The prefix of leases in etcd.
const SUBNETS: &str = "/coreos.com/network/subnets/";
/// Number of the invented nodes' next hops. Each is a neighbour of the one real node and has one of
/// the addresses 192.168.66.100, ….
pub const ROUTERS: u32 = 16;
/// Most invented nodes with separate subnets, VTEPs and MAC addresses; the real node's subnet is
/// above theirs.
pub const MOST: u32 = 60_000;

/// The network configuration, with room for [`MOST`] invented nodes below the subnets that agents
/// choose from.
pub fn network() -> Value {
    json!({
        "Network": "10.0.0.0/8",
        "SubnetLen": 24,
        "SubnetMin": "10.255.1.0",
        "SubnetMax": "10.255.9.0",
        "Backend": {"Type": "vxlan"}
    })
}

/// The subnet of the one real node where subnets are assigned: the `spec` of its Node.
pub fn real_range() -> Value {
    json!({"podCIDR": "10.255.1.0/24", "podCIDRs": ["10.255.1.0/24"]})
}

/// An invented node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invented {
    /// Number from 1 to [`MOST`].
    pub number: u32,
    /// Whether it has moved to another machine, with another underlay address and another MAC
    /// address.
    pub moved: bool,
}

impl Invented {
    /// Node `number`, before any move.
    pub fn new(number: u32) -> Self {
        Self {
            number,
            moved: false,
        }
    }

    /// The first address of the node's subnet, a /24.
    pub fn subnet(self) -> Ipv4Addr {
        let [_, high, middle, low] = self.number.to_be_bytes();
        Ipv4Addr::new(10 + high, middle, low, 0)
    }

    /// Number of the node's router.
    pub fn router(self) -> u32 {
        self.number % ROUTERS
    }

    /// Address of the node on the underlay.
    pub fn vtep(self) -> Ipv4Addr {
        let [_, _, high, low] = (self.number / ROUTERS).to_be_bytes();
        let [.., second] = (16 + self.router()).to_be_bytes();
        Ipv4Addr::new(172, second, high + if self.moved { 128 } else { 0 }, low)
    }

    /// The MAC address of the node's VXLAN device.
    pub fn mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.number.to_be_bytes();
        [2, u8::from(self.moved), a, b, c, d]
    }

    /// Key of the node's lease.
    pub fn key(self) -> String {
        format!("{SUBNETS}{}-24", self.subnet())
    }

    /// Value of the node's lease.
    pub fn value(self) -> String {
        let attributes = json!({
            "PublicIP": self.vtep(),
            "PublicIPv6": null,
            "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": text(self.mac())}
        });
        attributes.to_string()
    }
}

/// The part of the underlay behind router `number`.
pub fn behind(number: u32) -> Ipv4Net {
    let [.., second] = (16 + number).to_be_bytes();
    Ipv4Net::new_assert(Ipv4Addr::new(172, second, 0, 0), 16)
}

/// A router's address on the node's own segment.
pub fn router_address(number: u32) -> Ipv4Addr {
    let [.., last] = (100 + number).to_be_bytes();
    Ipv4Addr::new(192, 168, 66, last)
}

/// A router's MAC address after `generation` replacements.
pub fn router_mac(number: u32, generation: u32) -> [u8; 6] {
    let [_, high, middle, low] = generation.to_be_bytes();
    let [.., number] = number.to_be_bytes();
    [2, 0xaa, number, high, middle, low]
}

/// A MAC address in the form that people and flannel use.
pub fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A change of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// The lease exists, with these contents.
    Is(Invented),
    /// The lease was deleted.
    Gone(Invented),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nobody_shares_a_subnet_an_address_or_a_mac() {
        let nodes = || (1..=MOST).map(Invented::new);
        let everywhere = || {
            nodes().chain(nodes().map(|node| Invented {
                moved: true,
                ..node
            }))
        };
        let subnets: BTreeSet<_> = nodes().map(Invented::subnet).collect();
        let vteps: BTreeSet<_> = everywhere().map(Invented::vtep).collect();
        let macs: BTreeSet<_> = everywhere().map(Invented::mac).collect();
        let nodes = MOST as usize;
        assert_eq!(
            (subnets.len(), vteps.len(), macs.len()),
            (nodes, 2 * nodes, 2 * nodes)
        );
        assert!(everywhere().all(|node| behind(node.router()).contains(&node.vtep())));
        // This is the begin of the real node's subnet.
        assert!(
            subnets
                .iter()
                .all(|subnet| *subnet < Ipv4Addr::new(10, 255, 1, 0))
        );
    }

    #[test]
    fn a_lease_is_flannels() {
        let node = Invented {
            number: 300,
            moved: true,
        };
        assert_eq!(node.key(), "/coreos.com/network/subnets/10.1.44.0-24");
        assert_eq!(
            node.value(),
            "{\"PublicIP\":\"172.28.128.18\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
            \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"02:01:00:00:01:2c\"}}"
        );
    }
}
