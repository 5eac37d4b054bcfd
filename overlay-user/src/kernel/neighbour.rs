//! Permanent neighbours: which MAC address a peer's gateway address has.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::RouteType;

use super::{Error, Kernel, gone_is_fine};
use crate::mac::MacAddr;

impl Kernel {
    /// The neighbours of a device: `NDA_IFINDEX` (Linux 4.4) lets the kernel pick them.
    pub(super) async fn neighbours_of(&self, ifindex: u32) -> Result<Vec<NeighbourMessage>, Error> {
        let mut call = self.handle.neighbours().get();
        let attributes = &mut call.message_mut().attributes;
        attributes.push(NeighbourAttribute::IfIndex(ifindex));
        let object = format!("device {ifindex}");
        self.dump("RTM_GETNEIGH", &object, call.execute()).await
    }

    /// Adds or replaces a permanent neighbour.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn set_neighbour(
        &self,
        ifindex: u32,
        address: IpAddr,
        MacAddr(mac): MacAddr,
    ) -> Result<(), Error> {
        let call = self
            .handle
            .neighbours()
            .add(ifindex, address)
            .link_layer_address(&mac)
            .replace();
        self.request("RTM_NEWNEIGH", &address.to_string(), call.execute())
            .await
    }

    /// Removes a neighbour; a missing one is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove_neighbour(&self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = ifindex;
        message.header.kind = RouteType::Unspec;
        let (family, destination) = match address {
            IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
        };
        message.header.family = family;
        message
            .attributes
            .push(NeighbourAttribute::Destination(destination));
        let call = self.handle.neighbours().del(message).execute();
        gone_is_fine(
            self.request("RTM_DELNEIGH", &address.to_string(), call)
                .await,
        )
    }
}
