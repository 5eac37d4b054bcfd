//! The checks of every lease that come before its backend is asked for the way.
//!
//! A lease decides where this node sends packets and whose packets this node accepts. Therefore
//! each field counts as hostile until checked, and a bad lease never displaces a good one.

use std::net::IpAddr;

use ipnet::IpNet;

use super::model::{Backend, Here, Peer};
use crate::lease::{BackendData, Lease, RejectReason, excerpt};

/// Longest prefix of a node's subnet: a longer one has no room for a gateway and a pod.
const LONGEST_SUBNET: u8 = 30;

/// Judges a lease on its own.
pub fn judge(backend: &dyn Backend, here: &Here, lease: &Lease) -> Result<Peer, RejectReason> {
    let Lease { attributes, .. } = lease;
    let network = &here.network;
    let subnet = lease.subnets.like(network.addr());
    let Some(subnet) = subnet.filter(|subnet| network.contains(*subnet)) else {
        return Err(RejectReason::OutsideNetwork(*network));
    };
    if subnet.prefix_len() > LONGEST_SUBNET {
        return Err(RejectReason::TooSmall(subnet.prefix_len()));
    }
    if lease.key().overlaps(&here.subnet.into()) {
        return Err(RejectReason::OverlapsOwn(here.subnet));
    }
    let theirs = attributes.backend_type.as_deref().unwrap_or_default();
    if theirs != backend.name() {
        let (theirs, ours) = (excerpt(theirs), backend.name());
        return Err(RejectReason::BackendType { theirs, ours });
    }
    let Some(&vtep) = attributes.public_ip.like(here.public_ip) else {
        return Err(RejectReason::Value(format!(
            "no public IP of the family of {}",
            here.public_ip
        )));
    };
    let is_broadcast = |prefix| is_broadcast(prefix, vtep);
    if !is_host(vtep) || here.on_link.iter().any(is_broadcast) {
        return Err(RejectReason::PublicIp(vtep));
    }
    if network.contains(&vtep) {
        return Err(RejectReason::PublicIpInside(vtep));
    }
    if vtep == here.public_ip {
        return Err(RejectReason::PublicIpOwn(vtep));
    }
    let data = attributes.backend_data.as_ref();
    let data = data.and_then(|data| data.like(network.addr()));
    let data = data.map(BackendData::value);
    Ok(Peer {
        subnet: *subnet,
        vtep,
        way: backend.way(here, vtep, data.as_ref())?,
    })
}

/// Whether the address can be that of one remote host. Class E (240.0.0.0/4) and 0.0.0.0/8 cannot
/// be routed to by a Linux host in general; link-local ones can, on one segment.
fn is_host(address: IpAddr) -> bool {
    let IpAddr::V4(address) = address else {
        return false;
    };
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback()
}

/// Whether an address stands for every host on a link: the last address of `prefix`, and in the
/// obsolete form of RFC 1122, section 3.3.6, the first.
fn is_broadcast(prefix: &IpNet, address: IpAddr) -> bool {
    prefix.prefix_len() < 31 && (address == prefix.broadcast() || address == prefix.network())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::backend::{HostGw, UnderlayDevice, Vxlan};
    use crate::mac::MacAddr;
    use crate::per_family::PerFamily;

    pub fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    pub fn here() -> Here {
        Here {
            network: "10.244.0.0/16".parse().expect("a network"),
            subnet: "10.244.1.0/24".parse().expect("a subnet"),
            public_ip: [192, 168, 0, 1].into(),
            mac: mac(1),
            nic: UnderlayDevice {
                name: "eth0".to_owned(),
                ifindex: 2,
                mtu: 1500,
            },
            on_link: ["192.168.0.1/24", "192.168.5.1/31"]
                .map(|it| it.parse().expect("a prefix"))
                .into(),
        }
    }

    pub fn lease(backend: &dyn Backend, subnet: &str, public_ip: [u8; 4], mac: MacAddr) -> Lease {
        Lease {
            subnets: subnet.parse::<IpNet>().expect("a subnet").into(),
            attributes: backend.attributes(&PerFamily::V4((public_ip.into(), mac))),
            node: None,
            reserved: false,
            expires: None,
        }
    }

    #[test]
    fn the_smallest_subnet_and_the_last_address_are_good() {
        let vxlan = Vxlan::default();
        let theirs = lease(&vxlan, "10.244.2.0/30", [223, 255, 255, 254], mac(2));
        assert!(judge(&vxlan, &here(), &theirs).is_ok());
    }

    #[test]
    fn a_lease_of_another_backend_is_refused_by_name() {
        let theirs = lease(&HostGw, "10.244.2.0/24", [192, 168, 0, 2], mac(2));
        let vxlan = Vxlan::default();
        let reason = judge(&vxlan, &here(), &theirs).expect_err("another backend");
        let text = reason.to_string();
        assert!(
            text.contains("\"host-gw\"") && text.contains("vxlan"),
            "{text}"
        );
    }
}
