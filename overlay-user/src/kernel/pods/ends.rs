//! The pods' ends of veth pairs, as the kernel shows them from this namespace (which takes
//! `CAP_NET_ADMIN`, and not that the other namespace is entered), and the pods that these alone
//! tell of: those that flannel's plugin made before this node was ours.

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
use super::claims::only_address;
use super::{BridgeLink, BridgePort};
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
    /// The note that the port would have. Each namespace counts as one container.
    pub(super) fn note(self, address: IpAddr, port: &BridgePort) -> PodNote {
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

    /// The address of the pod behind a port without a note; `None` where the address is ambiguous.
    pub(super) async fn address_behind(
        &self,
        port: &BridgePort,
        bridge: &BridgeLink,
    ) -> Option<IpAddr> {
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
