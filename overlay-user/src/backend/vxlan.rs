//! Peers that are reached by VXLAN (RFC 7348), read from leases that anybody may have written.
//!
//! A lease decides where this node sends packets and whose packets it believes, so each field is taken
//! for hostile until shown otherwise, and a bad lease never costs a good one its place.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::fold_keys;
use crate::lease::{Attributes, Lease, RejectReason, excerpt};
use crate::mac::MacAddr;

/// The backend's name in leases and in the network configuration.
pub const TYPE: &str = "vxlan";

/// A longer prefix has no room for a gateway and a pod.
const LONGEST_SUBNET: u8 = 30;

/// Another node, with all that is needed to send to its pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// The node's pods have their addresses here.
    pub subnet: IpNet,
    /// Outer destination of packets to the node, and the only outer source they are taken from.
    pub vtep: IpAddr,
    /// Inner destination MAC of packets to the node.
    pub mac: MacAddr,
}

/// `BackendData` of a vxlan lease.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Data {
    /// Absent in leases of flannel from before 2021.
    vni: Option<u64>,
    vtepmac: MacAddr,
}

/// What this node publishes: `{"VNI":1,"VtepMAC":"…"}` with the MAC last, because a stock flanneld
/// finds it there by its place.
#[must_use]
pub fn own_attributes(public_ip: Ipv4Addr, vni: u32, mac: MacAddr) -> Attributes {
    Attributes {
        public_ip,
        public_ipv6: None,
        backend_type: Some(TYPE.to_owned()),
        backend_data: Some(json!({ "VNI": vni, "VtepMAC": mac })),
        backend_v6_data: None,
    }
}

/// The MAC address that a lease names, where it is that of one device.
#[must_use]
pub fn mac_of(attributes: &Attributes) -> Option<MacAddr> {
    let data = data(attributes.backend_data.as_ref()).ok()?;
    data.vtepmac.is_unicast().then_some(data.vtepmac)
}

/// What the other nodes' leases are judged against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ground {
    network: IpNet,
    own: IpNet,
    own_address: Ipv4Addr,
    /// Absent where this node's lease says nothing that can be read.
    own_data: Option<Data>,
    on_link: Vec<IpNet>,
}

impl Ground {
    /// `network` is the overlay's, `own` this node's lease, whose backend data holds our VNI and MAC;
    /// `on_link` are the prefixes of the underlay's device, whose broadcast addresses no node has.
    pub fn new(network: &IpNet, own: &Lease, on_link: &[IpNet]) -> Self {
        Self {
            network: *network,
            own: own.subnet,
            own_address: own.attributes.public_ip,
            own_data: data(own.attributes.backend_data.as_ref()).ok(),
            on_link: on_link.to_vec(),
        }
    }

    /// Judges a lease on its own.
    pub fn judge(&self, lease: &Lease) -> Result<Peer, RejectReason> {
        let Lease {
            subnet, attributes, ..
        } = lease;
        let network = &self.network;
        if !network.contains(subnet) {
            return Err(RejectReason::OutsideNetwork(*network));
        }
        if subnet.prefix_len() > LONGEST_SUBNET {
            return Err(RejectReason::TooSmall(subnet.prefix_len()));
        }
        if lease.overlaps(&self.own) {
            return Err(RejectReason::OverlapsOwn(self.own));
        }
        let kind = attributes.backend_type.as_deref().unwrap_or_default();
        if kind != TYPE {
            return Err(RejectReason::BackendType(excerpt(kind)));
        }
        let vtep = attributes.public_ip;
        let is_broadcast = |prefix| is_broadcast(prefix, vtep);
        if !is_host(vtep) || self.on_link.iter().any(is_broadcast) {
            return Err(RejectReason::PublicIp(vtep.into()));
        }
        if network.contains(&IpAddr::V4(vtep)) {
            return Err(RejectReason::PublicIpInside(vtep.into()));
        }
        if vtep == self.own_address {
            return Err(RejectReason::PublicIpOwn(vtep.into()));
        }
        let data = data(attributes.backend_data.as_ref())?;
        if !data.vtepmac.is_unicast() {
            return Err(RejectReason::Mac(data.vtepmac));
        }
        if let Some(ours) = &self.own_data {
            if ours.vtepmac == data.vtepmac {
                let holder = self.own_address.into();
                return Err(RejectReason::MacTaken {
                    mac: data.vtepmac,
                    holder,
                });
            }
            if let (Some(theirs), Some(Ok(ours))) = (data.vni, ours.vni.map(u32::try_from))
                && theirs != u64::from(ours)
            {
                return Err(RejectReason::Vni { theirs, ours });
            }
        }
        Ok(Peer {
            subnet: *subnet,
            vtep: vtep.into(),
            mac: data.vtepmac,
        })
    }
}

fn data(value: Option<&Value>) -> Result<Data, RejectReason> {
    let value = value.cloned().unwrap_or_default();
    serde_json::from_value(fold_keys(value))
        .map_err(|error| RejectReason::BackendData(excerpt(&error.to_string())))
}

/// Whether the address can be that of one remote host. Class E (240.0.0.0/4) and 0.0.0.0/8 cannot be
/// routed to by a Linux host in general; link-local ones can, on one segment.
fn is_host(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback()
}

/// Whether an address stands for everybody on a link: its last one, and of old (RFC 1122, section 3.3.6) its first.
fn is_broadcast(prefix: &IpNet, address: Ipv4Addr) -> bool {
    let address = IpAddr::V4(address);
    prefix.prefix_len() < 31 && (address == prefix.broadcast() || address == prefix.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_data_is_flannels_to_the_byte() {
        assert_eq!(
            own_attributes([192, 168, 64, 3].into(), 1, MacAddr([2, 0, 0, 0, 0, 0x44]))
                .to_json()
                .expect("JSON"),
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:44"}}"#
        );
    }
}
