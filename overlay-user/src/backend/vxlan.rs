//! Peers that are reached by VXLAN (RFC 7348), read from leases that anybody may have written.
//!
//! A lease decides where this node sends packets and whose packets it believes, so each field is taken
//! for hostile until shown otherwise, and a bad lease never costs a good one its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::fold_keys;
use crate::lease::{Attributes, Lease, RejectReason, Rejected, excerpt};
use crate::mac::MacAddr;

/// The backend's name in leases and in the network configuration.
pub const TYPE: &str = "vxlan";

/// A longer prefix has no room for a gateway and a pod.
const LONGEST_SUBNET: u8 = 30;

/// Another node, with all that is needed to send to its pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Peer {
    /// The node's pods have their addresses here.
    pub subnet: IpNet,
    /// Outer destination of packets to the node, and the only outer source they are taken from.
    pub vtep: IpAddr,
    /// Inner destination MAC of packets to the node.
    pub mac: MacAddr,
}

/// `BackendData` of a vxlan lease.
#[derive(Deserialize)]
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

/// Reads the peers out of the other nodes' leases. `network` is the overlay's, `own` this node's lease,
/// whose backend data holds our VNI and MAC; `on_link` are the prefixes of the underlay's device, whose broadcast
/// addresses no node has. Where two leases contradict each other, the one that is among
/// the peers `accepted` before stays, else the one that comes first in `leases`; so the answer depends on
/// nothing but the arguments, and a newcomer cannot push out a peer. Peers come sorted.
#[must_use]
pub fn peers(
    network: &IpNet,
    own: &Lease,
    on_link: &[IpNet],
    leases: &[Lease],
    accepted: &[Peer],
) -> (Vec<Peer>, Vec<Rejected>) {
    let accepted: BTreeSet<&Peer> = accepted.iter().collect();
    let (known, new): (Vec<_>, Vec<_>) = leases
        .iter()
        .map(|lease| (lease, peer(network, own, on_link, lease)))
        .partition(|(_, judged)| judged.as_ref().is_ok_and(|peer| accepted.contains(peer)));
    let (mut believed, mut rejected) = (Believed::default(), Vec::new());
    for (lease, judged) in known.into_iter().chain(new) {
        if let Err(reason) = judged.and_then(|peer| believed.add(peer)) {
            rejected.push(Rejected {
                subject: lease.key().to_string(),
                reason,
            });
        }
    }
    rejected.sort();
    (believed.by_subnet.into_values().collect(), rejected)
}

/// Judges a lease on its own.
fn peer(
    network: &IpNet,
    own: &Lease,
    on_link: &[IpNet],
    lease: &Lease,
) -> Result<Peer, RejectReason> {
    let Lease {
        subnet, attributes, ..
    } = lease;
    if !network.contains(subnet) {
        return Err(RejectReason::OutsideNetwork(*network));
    }
    if subnet.prefix_len() > LONGEST_SUBNET {
        return Err(RejectReason::TooSmall(subnet.prefix_len()));
    }
    if lease.overlaps(&own.subnet) {
        return Err(RejectReason::OverlapsOwn(own.subnet));
    }
    let kind = attributes.backend_type.as_deref().unwrap_or_default();
    if kind != TYPE {
        return Err(RejectReason::BackendType(excerpt(kind)));
    }
    let vtep = attributes.public_ip;
    if !is_host(vtep) || on_link.iter().any(|prefix| is_broadcast(prefix, vtep)) {
        return Err(RejectReason::PublicIp(vtep.into()));
    }
    if network.contains(&IpAddr::V4(vtep)) {
        return Err(RejectReason::PublicIpInside(vtep.into()));
    }
    if vtep == own.attributes.public_ip {
        return Err(RejectReason::PublicIpOwn(vtep.into()));
    }
    let data = data(attributes.backend_data.as_ref())?;
    if !data.vtepmac.is_unicast() {
        return Err(RejectReason::Mac(data.vtepmac));
    }
    if let Ok(ours) = self::data(own.attributes.backend_data.as_ref()) {
        if ours.vtepmac == data.vtepmac {
            let holder = own.attributes.public_ip.into();
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

/// Peers that do not contradict each other: no two share addresses, and no two nodes share a MAC address, because
/// the forwarding database has one entry for each. One node may hold two subnets.
#[derive(Default)]
struct Believed {
    by_subnet: BTreeMap<IpNet, Peer>,
    by_mac: HashMap<MacAddr, IpAddr>,
}

impl Believed {
    /// Adds a peer, unless something speaks against it.
    fn add(&mut self, peer: Peer) -> Result<(), RejectReason> {
        // Those that are there do not overlap: only the next one on either side can contain it, or lie in it.
        let before = self.by_subnet.range(..=peer.subnet).next_back();
        let after = self.by_subnet.range(peer.subnet..).next();
        for (other, _) in before.into_iter().chain(after) {
            if other.contains(&peer.subnet) || peer.subnet.contains(other) {
                return Err(RejectReason::Overlaps(*other));
            }
        }
        let holder = *self.by_mac.entry(peer.mac).or_insert(peer.vtep);
        if holder != peer.vtep {
            let mac = peer.mac;
            return Err(RejectReason::MacTaken { mac, holder });
        }
        self.by_subnet.insert(peer.subnet, peer);
        Ok(())
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

    const NETWORK: &str = "10.244.0.0/16";

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    fn lease(subnet: &str, public_ip: [u8; 4], mac: MacAddr) -> Lease {
        Lease {
            subnet: subnet.parse().expect("a subnet"),
            subnet_v6: None,
            attributes: own_attributes(public_ip.into(), 1, mac),
            reserved: false,
            expires: None,
        }
    }

    fn own() -> Lease {
        lease("10.244.1.0/24", [192, 168, 0, 1], mac(1))
    }

    fn judge(leases: &[Lease], accepted: &[Peer]) -> (Vec<Peer>, Vec<RejectReason>) {
        let network = NETWORK.parse().expect("a network");
        let on_link = ["192.168.0.1/24", "192.168.5.1/31"].map(|it| it.parse().expect("a prefix"));
        let (peers, rejected) = peers(&network, &own(), &on_link, leases, accepted);
        (peers, rejected.into_iter().map(|it| it.reason).collect())
    }

    fn good() -> Lease {
        lease("10.244.2.0/24", [192, 168, 0, 2], mac(2))
    }

    #[test]
    fn own_data_is_flannels_to_the_byte() {
        assert_eq!(
            own_attributes([192, 168, 64, 3].into(), 1, mac(0x44))
                .to_json()
                .expect("JSON"),
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:44"}}"#
        );
    }

    #[test]
    fn good_leases_become_peers() {
        let second = lease("10.244.3.0/24", [192, 168, 0, 2], mac(2));
        let mut old = lease("10.244.4.0/24", [192, 168, 0, 4], mac(4));
        old.attributes.backend_data = Some(json!({ "VtepMAC": mac(4) }));
        let (peers, rejected) = judge(&[second, good(), old], &[]);
        assert_eq!(rejected, []);
        let subnets: Vec<String> = peers.iter().map(|peer| peer.subnet.to_string()).collect();
        assert_eq!(subnets, ["10.244.2.0/24", "10.244.3.0/24", "10.244.4.0/24"]);
        assert_eq!(
            peers[0],
            Peer {
                subnet: "10.244.2.0/24".parse().expect("a subnet"),
                vtep: IpAddr::from([192, 168, 0, 2]),
                mac: mac(2)
            }
        );
    }

    #[test]
    fn a_link_of_two_has_no_broadcast_address() {
        for last in [0, 1] {
            let lease = lease("10.244.9.0/24", [192, 168, 5, last], mac(9));
            assert_eq!(judge(&[lease], &[]).1, []);
        }
    }

    #[test]
    fn hostile_leases_are_rejected_and_cost_no_good_one() {
        let with = |data: Value| {
            let mut lease = lease("10.244.9.0/24", [192, 168, 0, 9], mac(9));
            lease.attributes.backend_data = Some(data);
            lease
        };
        let at = |address| lease("10.244.9.0/24", address, mac(9));
        let of = |subnet| lease(subnet, [192, 168, 0, 9], mac(9));
        let mut untyped = of("10.244.9.0/24");
        untyped.attributes.backend_type = None;
        type Wanted = fn(&RejectReason) -> bool;
        let cases: [(Lease, Wanted); 27] = [
            (of("10.245.9.0/24"), |it| {
                matches!(it, RejectReason::OutsideNetwork(_))
            }),
            (of("0.0.0.0/0"), |it| {
                matches!(it, RejectReason::OutsideNetwork(_))
            }),
            (at([192, 168, 0, 255]), |it| {
                matches!(it, RejectReason::PublicIp(_))
            }),
            (at([192, 168, 0, 0]), |it| {
                matches!(it, RejectReason::PublicIp(_))
            }),
            (of("10.244.9.0/31"), |it| {
                matches!(it, RejectReason::TooSmall(31))
            }),
            (of("10.244.1.0/24"), |it| {
                matches!(it, RejectReason::OverlapsOwn(_))
            }),
            (of("10.244.1.64/26"), |it| {
                matches!(it, RejectReason::OverlapsOwn(_))
            }),
            (of("10.244.0.0/16"), |it| {
                matches!(it, RejectReason::OverlapsOwn(_))
            }),
            (of("10.244.2.0/25"), |it| {
                matches!(it, RejectReason::Overlaps(_))
            }),
            (untyped, |it| matches!(it, RejectReason::BackendType(_))),
            (at([0, 0, 0, 0]), |it| {
                matches!(it, RejectReason::PublicIp(_))
            }),
            (at([0, 1, 2, 3]), |it| {
                matches!(it, RejectReason::PublicIp(_))
            }),
            (at([127, 0, 0, 1]), |it| {
                matches!(it, RejectReason::PublicIp(_))
            }),
            (at([224, 0, 0, 1]), |it| {
                matches!(it, RejectReason::PublicIp(_))
            }),
            (at([240, 0, 0, 1]), |it| {
                matches!(it, RejectReason::PublicIp(_))
            }),
            (at([255, 255, 255, 255]), |it| {
                matches!(it, RejectReason::PublicIp(_))
            }),
            (at([10, 244, 3, 3]), |it| {
                matches!(it, RejectReason::PublicIpInside(_))
            }),
            (at([192, 168, 0, 1]), |it| {
                matches!(it, RejectReason::PublicIpOwn(_))
            }),
            (with(Value::Null), |it| {
                matches!(it, RejectReason::BackendData(_))
            }),
            (with(json!("text")), |it| {
                matches!(it, RejectReason::BackendData(_))
            }),
            (with(json!({ "VNI": 1 })), |it| {
                matches!(it, RejectReason::BackendData(_))
            }),
            (with(json!({ "VNI": -1, "VtepMAC": mac(9) })), |it| {
                matches!(it, RejectReason::BackendData(_))
            }),
            (with(json!({ "VNI": 2, "VtepMAC": mac(9) })), |it| {
                matches!(it, RejectReason::Vni { theirs: 2, ours: 1 })
            }),
            (with(json!({ "VtepMAC": MacAddr([0; 6]) })), |it| {
                matches!(it, RejectReason::Mac(_))
            }),
            (
                with(json!({ "VtepMAC": MacAddr([1, 0, 0, 0, 0, 1]) })),
                |it| matches!(it, RejectReason::Mac(_)),
            ),
            (with(json!({ "VtepMAC": mac(1) })), |it| {
                matches!(it, RejectReason::MacTaken { .. })
            }),
            (with(json!({ "VtepMAC": mac(2) })), |it| {
                matches!(it, RejectReason::MacTaken { .. })
            }),
        ];
        for (bad, wanted) in cases {
            let (peers, rejected) = judge(&[good(), bad.clone()], &[]);
            assert_eq!(peers.len(), 1, "{bad:?}");
            assert_eq!(peers[0].mac, mac(2), "{bad:?}");
            assert!(
                matches!(&rejected[..], [reason] if wanted(reason)),
                "{bad:?}: {rejected:?}"
            );
        }
    }

    #[test]
    fn who_was_there_first_stays() {
        let intruder = lease("10.244.0.0/20", [192, 168, 0, 66], mac(66));
        let intruder = Lease {
            subnet: "10.244.2.0/23".parse().expect("a subnet"),
            ..intruder
        };
        let (peers, _) = judge(&[good()], &[]);
        let (kept, rejected) = judge(&[intruder.clone(), good()], &peers);
        assert_eq!(kept, peers);
        assert!(matches!(rejected[..], [RejectReason::Overlaps(_)]));
        let (first, _) = judge(&[intruder, good()], &[]);
        assert_eq!(
            first[0].mac,
            mac(66),
            "without a past, the order of leases decides"
        );
    }
}
