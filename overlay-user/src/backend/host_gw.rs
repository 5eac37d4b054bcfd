//! `host-gw`: every node is the gateway to its own pods, on a link that all nodes share. Nothing is
//! encapsulated, and no device is made.

use std::net::IpAddr;

use serde_json::Value;

use super::model::{Backend, Entries, Here, Peer, Way};
use crate::lease::RejectReason;

/// See [the module](self).
#[derive(Clone, Copy, Debug)]
pub struct HostGw;

impl Backend for HostGw {
    fn name(&self) -> &'static str {
        "host-gw"
    }

    fn has_direct_ways(&self) -> bool {
        true
    }

    fn mtu(&self, underlay: u32) -> u32 {
        underlay
    }

    fn way(
        &self,
        here: &Here,
        public_ip: IpAddr,
        _data: Option<&Value>,
    ) -> Result<Way, RejectReason> {
        match here.is_on_link(public_ip) {
            true => Ok(Way::Direct),
            false => Err(RejectReason::NotOnLink(public_ip, here.nic.name.clone())),
        }
    }

    fn entries(&self, here: &Here, peer: &Peer) -> Entries {
        Entries::direct(here, peer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge::judge;
    use super::super::judge::tests::{here, lease, mac};
    use super::*;
    use crate::mac::MacAddr;
    use crate::per_family::PerFamily;

    #[test]
    fn own_data_is_flannels_to_the_byte() {
        let attributes = HostGw.attributes(&PerFamily::V4((
            [192, 168, 64, 3].into(),
            MacAddr::default(),
        )));
        assert_eq!(
            attributes.to_json().expect("JSON"),
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#
        );
    }

    #[test]
    fn packets_are_as_long_as_the_links() {
        assert_eq!(HostGw.mtu(1500), 1500);
        assert_eq!(HostGw.device(), None);
        assert!(HostGw.has_direct_ways());
    }

    #[test]
    fn a_peer_on_the_link_is_its_subnets_gateway() {
        let here = here();
        let theirs = lease(&HostGw, "10.244.2.0/24", [192, 168, 0, 2], mac(2));
        let peer = judge(&HostGw, &here, &theirs).expect("a peer");
        assert_eq!(peer.way, Way::Direct);
        let state = HostGw.state(&here, std::slice::from_ref(&peer));
        assert_eq!((&state.device, state.forwarding), (&None, true));
        assert_eq!(state.network, Some(here.network));
        assert!(state.neighbours.is_empty() && state.fdb.is_empty());
        let [route] = Vec::from_iter(&state.routes)[..] else {
            panic!("{:?}", state.routes);
        };
        assert_eq!(
            (route.subnet, route.gateway),
            (peer.subnet, Some(peer.vtep))
        );
        assert_eq!(
            (route.device.as_deref(), route.onlink),
            (Some("eth0"), false)
        );
    }

    #[test]
    fn a_peer_behind_a_router_is_refused_by_name() {
        let theirs = lease(&HostGw, "10.244.2.0/24", [192, 168, 1, 2], mac(2));
        let reason = judge(&HostGw, &here(), &theirs).expect_err("a router");
        let text = reason.to_string();
        assert!(
            text.contains("192.168.1.2") && text.contains("eth0"),
            "{text}"
        );
    }
}
