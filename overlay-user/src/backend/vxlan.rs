//! `vxlan`: packets travel in UDP (RFC 7348), through a device of the kernel's VXLAN driver.

use std::net::IpAddr;

use ipnet::IpNet;
use overlay_common::{Family as _, V4};
use serde::Deserialize;
use serde_json::{Value, json};

use super::model::{Backend, Entries, Here, Peer, Way};
use crate::config::{VxlanConfig, fold_keys};
use crate::lease::{Attributes, RejectReason, excerpt};
use crate::mac::MacAddr;
use crate::marks::ROUTE_PROTOCOL;
use crate::reconcile::{OverlayDevice, Route, VxlanAttributes};

/// See [the module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct Vxlan(pub VxlanConfig);

/// `BackendData` of a lease.
#[derive(Deserialize)]
struct Data {
    /// Absent in leases of flannel from before 2021.
    vni: Option<u64>,
    vtepmac: MacAddr,
}

impl Backend for Vxlan {
    fn name(&self) -> &'static str {
        "vxlan"
    }

    fn device(&self) -> Option<String> {
        Some(format!("flannel.{}", self.0.vni))
    }

    fn has_direct_ways(&self) -> bool {
        self.0.direct_routing
    }

    fn mtu(&self, underlay: u32) -> u32 {
        self.0
            .mtu
            .unwrap_or(underlay)
            .saturating_sub(V4::VXLAN_OVERHEAD)
    }

    /// `{"VNI":1,"VtepMAC":"…"}` with the MAC address last, because a stock flanneld finds the
    /// MAC address by its position.
    fn data(&self, mac: MacAddr) -> Option<Value> {
        Some(json!({ "VNI": self.0.vni, "VtepMAC": mac }))
    }

    fn way(
        &self,
        here: &Here,
        public_ip: IpAddr,
        data: Option<&Value>,
    ) -> Result<Way, RejectReason> {
        let Data { vni, vtepmac: mac } = parse(data)?;
        if !mac.is_unicast() {
            return Err(RejectReason::Mac(mac));
        }
        if mac == here.mac {
            let holder = here.public_ip;
            return Err(RejectReason::MacTaken { mac, holder });
        }
        match vni {
            Some(theirs) if theirs != u64::from(self.0.vni) => {
                let ours = self.0.vni;
                Err(RejectReason::Vni { theirs, ours })
            }
            _ if self.0.direct_routing && here.is_on_link(public_ip) => Ok(Way::Direct),
            _ => Ok(Way::Vxlan { mac }),
        }
    }

    fn overlay_device(&self, here: &Here) -> Option<OverlayDevice> {
        Some(OverlayDevice {
            name: self.device()?,
            ifindex: 0,
            vxlan: Some(VxlanAttributes {
                vni: self.0.vni,
                port: self.0.port,
                underlay: here.nic.ifindex,
                local: Some(here.public_ip),
                learning: false,
            }),
            mac: here.mac,
            mtu: self.mtu(here.nic.mtu),
            up: true,
            addresses: [IpNet::from(here.subnet.network())].into(),
            configures_itself: false,
        })
    }

    /// A route to the peer's subnet by way of the subnet's base address. No host answers for that
    /// address, hence `onlink` and a permanent neighbour.
    fn entries(&self, here: &Here, peer: &Peer) -> Entries {
        let Way::Vxlan { mac } = peer.way else {
            return Entries::direct(here, peer);
        };
        let gateway = peer.subnet.network();
        Entries {
            route: Route {
                subnet: peer.subnet,
                gateway: Some(gateway),
                device: self.device(),
                onlink: true,
                protocol: ROUTE_PROTOCOL,
                metric: 0,
            },
            neighbour: Some((gateway, mac)),
            fdb: Some((mac, peer.vtep)),
        }
    }
}

/// The MAC address that a lease names, where this is an address of one device.
#[must_use]
pub fn mac_of(attributes: &Attributes) -> Option<MacAddr> {
    let data = attributes.backend_data.as_ref()?.first().value();
    let data = parse(Some(&data)).ok()?;
    data.vtepmac.is_unicast().then_some(data.vtepmac)
}

fn parse(value: Option<&Value>) -> Result<Data, RejectReason> {
    let value = value.cloned().unwrap_or_default();
    serde_json::from_value(fold_keys(value))
        .map_err(|error| RejectReason::BackendData(excerpt(&error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::super::judge::judge;
    use super::super::judge::tests::{here, lease, mac};
    use super::*;
    use crate::lease::Lease;
    use crate::per_family::PerFamily;

    #[test]
    fn own_data_is_flannels_to_the_byte() {
        let attributes =
            Vxlan::default().attributes(&PerFamily::V4(([192, 168, 64, 3].into(), mac(0x44))));
        assert_eq!(
            attributes.to_json().expect("JSON"),
            "{\"PublicIP\":\"192.168.64.3\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
            \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:44\"}}"
        );
    }

    #[test]
    fn packets_leave_room_for_the_header() {
        // Outer IPv4 (20), UDP (8), VXLAN (8), inner Ethernet (14).
        let of = |mtu, underlay| {
            Vxlan(VxlanConfig {
                mtu,
                ..VxlanConfig::default()
            })
            .mtu(underlay)
        };
        assert_eq!(of(None, 1500), 1450);
        assert_eq!(of(None, 9000), 8950);
        assert_eq!(of(Some(1400), 9000), 1350);
        assert_eq!(of(None, 49), 0);
    }

    #[test]
    fn a_peer_is_behind_its_subnets_base_address() {
        let (vxlan, here) = (
            Vxlan(VxlanConfig {
                vni: 7,
                port: 4789,
                ..VxlanConfig::default()
            }),
            here(),
        );
        assert!(!vxlan.has_direct_ways());
        let theirs = lease(&vxlan, "10.244.2.0/24", [192, 168, 1, 2], mac(2));
        let peer = judge(&vxlan, &here, &theirs).expect("a peer");
        assert_eq!(peer.mac(), Some(mac(2)));
        let state = vxlan.state(&here, std::slice::from_ref(&peer));
        assert_eq!(
            (state.network, state.forwarding),
            (Some(here.network), true)
        );
        let device = OverlayDevice {
            name: "flannel.7".to_owned(),
            ifindex: 0,
            vxlan: Some(VxlanAttributes {
                vni: 7,
                port: 4789,
                underlay: 2,
                local: Some([192, 168, 0, 1].into()),
                learning: false,
            }),
            mac: mac(1),
            mtu: 1450,
            up: true,
            addresses: ["10.244.1.0/32".parse().expect("an address")].into(),
            configures_itself: false,
        };
        assert_eq!(state.device, Some(device));
        let base = [10, 244, 2, 0].into();
        let route = Route {
            subnet: peer.subnet,
            gateway: Some(base),
            device: Some("flannel.7".to_owned()),
            onlink: true,
            protocol: ROUTE_PROTOCOL,
            metric: 0,
        };
        assert_eq!(Vec::from_iter(&state.routes), [&route]);
        assert_eq!(Vec::from_iter(state.neighbours), [(base, mac(2))]);
        assert_eq!(
            Vec::from_iter(state.fdb),
            [(mac(2), [192, 168, 1, 2].into())]
        );
    }

    #[test]
    fn a_lease_names_the_address_of_one_device() {
        let lease = |address| {
            lease(
                &Vxlan::default(),
                "10.244.2.0/24",
                [192, 168, 0, 2],
                address,
            )
        };
        assert_eq!(mac_of(&lease(mac(2)).attributes), Some(mac(2)));
        let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
        assert_eq!(mac_of(&lease(group).attributes), None);
        let attributes = Attributes {
            backend_data: None,
            ..lease(mac(2)).attributes
        };
        assert_eq!(mac_of(&attributes), None);
    }

    #[test]
    fn direct_routing_is_for_peers_on_the_link_only() {
        let direct = Vxlan(VxlanConfig {
            direct_routing: true,
            ..VxlanConfig::default()
        });
        let here = here();
        let near = lease(&direct, "10.244.2.0/24", [192, 168, 0, 2], mac(2));
        let far = lease(&direct, "10.244.3.0/24", [192, 168, 1, 2], mac(3));
        let peer = |backend: &Vxlan, lease: &Lease| judge(backend, &here, lease).expect("a peer");
        let way = |backend, lease| peer(backend, lease).way;
        assert_eq!(way(&direct, &near), Way::Direct);
        assert_eq!(way(&direct, &far), Way::Vxlan { mac: mac(3) });
        assert_eq!(way(&Vxlan::default(), &near), Way::Vxlan { mac: mac(2) });

        let state = direct.state(&here, &[peer(&direct, &near), peer(&direct, &far)]);
        let devices = state.routes.iter().map(|route| route.device.as_deref());
        assert_eq!(Vec::from_iter(devices), [Some("eth0"), Some("flannel.1")]);
        assert_eq!((state.neighbours.len(), state.fdb.len()), (1, 1));
        assert_eq!(state.device.expect("a device").mtu, 1450);
    }
}
