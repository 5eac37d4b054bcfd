//! The pods' ends of veth pairs, as the kernel shows them from this namespace (which takes
//! `CAP_NET_ADMIN`, and not that the other namespace is entered), and the pods that these alone
//! tell of: those that flannel's plugin made before this node was ours.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::super::attributes::{link_mac, link_name, on_device};
use super::super::dump::{Request, dump_strictly};
use super::super::{Error, Kernel};
use super::{BridgeLink, PodLink, Port};
use crate::mac::MacAddr;
use crate::pod::PodNote;

/// The attribute of a request about a device of another namespace (`linux/if_link.h`; Linux 4.19).
const IFLA_TARGET_NETNSID: u16 = 46;

/// A pod's end of a veth pair.
pub(super) struct End {
    pub name: String,
    pub mac: MacAddr,
}

impl End {
    /// What a note on the port would say. A namespace is a container.
    pub(super) fn note(self, address: IpAddr, port: &Port) -> PodNote {
        let netns = port.end.map_or(-1, |(netns, _)| netns);
        PodNote {
            addresses: address.into(),
            mac: self.mac,
            container: format!("netns-{netns}"),
            interface: self.name,
            masqueraded: false,
            by_kube_proxy: None,
        }
    }
}

impl Kernel {
    /// A device of another namespace, which has the number `netns` in this one.
    pub(super) async fn end_in(&self, netns: i32, ifindex: u32) -> Result<Option<End>, Error> {
        let mut get = self.handle.link().get().match_index(ifindex);
        let target = DefaultNla::new(IFLA_TARGET_NETNSID, netns.to_ne_bytes().to_vec());
        let attributes = &mut get.message_mut().attributes;
        attributes.push(LinkAttribute::Other(target));
        let object = format!("ifindex {ifindex} of namespace {netns}");
        let found = self.dump("RTM_GETLINK", &object, get.execute()).await?;
        Ok(found.first().and_then(|link| {
            Some(End {
                name: link_name(link)?.to_owned(),
                mac: link_mac(link)?,
            })
        }))
    }

    /// The address of the pod behind a port without a note; none where that is in doubt.
    pub(super) async fn address_behind(&self, port: &Port, bridge: &BridgeLink) -> Option<IpAddr> {
        let (netns, ifindex) = port.end?;
        match addresses_in(netns, ifindex).await {
            Ok(found) => only_address(&found, &bridge.addresses),
            Err(error) => {
                tracing::debug!("addresses of ifindex {ifindex} of namespace {netns}: {error}");
                None
            }
        }
    }
}

/// The IPv4 addresses of a device of another namespace (Linux 4.20).
async fn addresses_in(netns: i32, ifindex: u32) -> Result<Vec<IpNet>, Error> {
    let target = AddressAttribute::TargetNetNsId(netns);
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = ifindex;
    message.attributes.push(target.clone());
    let request = Request {
        protocol: NETLINK_ROUTE,
        message: RouteNetlinkMessage::GetAddress(message),
        call: "RTM_GETADDR",
        object: "a pod's end",
    };
    // The answer names the namespace; a kernel that does not know the attribute tells of its own.
    let found = dump_strictly(request, |answer| match answer {
        RouteNetlinkMessage::NewAddress(found) if found.attributes.contains(&target) => Some(found),
        _ => None,
    });
    let found = found.await?;
    Ok(on_device(&found, ifindex).collect())
}

/// The address of a pod that has only one, in a network of the bridge. A pod with more is not known
/// well enough to be held to one.
fn only_address(found: &[IpNet], bridge: &[IpNet]) -> Option<IpAddr> {
    let [only] = found else { return None };
    let address = only.addr();
    let is_of_bridge = bridge
        .iter()
        .any(|own| own.contains(&address) && own.addr() != address);
    is_of_bridge.then_some(address)
}

/// Leaves out whoever claims an address that another pod has as well, because nobody has vouched
/// for what a pod without a note says.
pub(super) fn drop_disputed(noted: &[PodLink], unnoted: &mut Vec<PodLink>) {
    let mut claims: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for pod in noted.iter().chain(unnoted.iter()) {
        for address in pod.note.addresses.iter() {
            *claims.entry(*address).or_default() += 1;
        }
    }
    let is_sole = |address: &IpAddr| claims.get(address) == Some(&1);
    unnoted.retain(|pod| pod.note.addresses.iter().all(is_sole));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_of_the_bridge_is_the_pods() {
        let net = |text: &str| -> IpNet { text.parse().expect("an address") };
        let bridge = [net("10.244.1.1/24"), net("fe80::1/64")];
        let of = |found: &[&str]| {
            let found: Vec<_> = found.iter().map(|text| net(text)).collect();
            only_address(&found, &bridge)
        };
        assert_eq!(of(&["10.244.1.7/24"]), Some([10, 244, 1, 7].into()));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["10.244.1.7/24", "10.244.1.8/24"]), None);
        assert_eq!(of(&["10.244.1.7/24", "192.0.2.7/32"]), None);
        assert_eq!(of(&["10.244.1.1/24"]), None, "the gateway's");
        assert_eq!(of(&["10.244.2.7/24"]), None, "another node's");
    }

    #[test]
    fn nobody_is_believed_where_two_claim_an_address() {
        let pod = |ifindex: u32, last: u8| PodLink {
            ifindex,
            name: format!("veth{ifindex}"),
            mac: MacAddr::default(),
            pod_mac: MacAddr::default(),
            peer: None,
            note: PodNote {
                addresses: IpAddr::from([10, 244, 1, last]).into(),
                mac: MacAddr::default(),
                container: format!("netns-{ifindex}"),
                interface: "eth0".to_owned(),
                masqueraded: false,
                by_kube_proxy: None,
            },
            master: 1,
            netns_id: None,
            mtu: 1450,
            up: true,
            has_foreign_qdisc: false,
        };
        let noted = [pod(2, 2)];
        let mut unnoted = vec![pod(3, 2), pod(4, 4), pod(5, 4), pod(6, 6)];
        drop_disputed(&noted, &mut unnoted);
        assert_eq!(unnoted, [pod(6, 6)]);
    }
}
