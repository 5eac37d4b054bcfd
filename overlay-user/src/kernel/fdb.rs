//! The FDB of the VXLAN device: the VTEP behind which a peer's MAC address is.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteType;

use super::{Error, Kernel, gone_is_fine};
use crate::mac::MacAddr;

impl Kernel {
    /// The FDB of every device of the namespace.
    pub(super) async fn fdb(&self) -> Result<Vec<NeighbourMessage>, Error> {
        let call = self
            .handle
            .neighbours()
            .get()
            .set_address_family(AddressFamily::Bridge);
        self.dump("RTM_GETNEIGH", "the forwarding database", call.execute())
            .await
    }

    /// Adds or replaces a permanent FDB entry of the device itself.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn set_fdb(&self, ifindex: u32, mac: MacAddr, vtep: IpAddr) -> Result<(), Error> {
        let call = self
            .handle
            .neighbours()
            .add_bridge(ifindex, &mac.0)
            .destination(vtep)
            .flags(NeighbourFlags::Own)
            .state(NeighbourState::Permanent)
            .replace();
        self.request(
            "RTM_NEWNEIGH",
            &format!("fdb {mac} dst {vtep}"),
            call.execute(),
        )
        .await
    }

    /// Removes an FDB entry; a missing one is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove_fdb(&self, ifindex: u32, mac: MacAddr, vtep: IpAddr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = ifindex;
        message.header.kind = RouteType::Unspec;
        message.header.flags = NeighbourFlags::Own;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
            NeighbourAttribute::Destination(match vtep {
                IpAddr::V4(address) => NeighbourAddress::Inet(address),
                IpAddr::V6(address) => NeighbourAddress::Inet6(address),
            }),
        ];
        let call = self.handle.neighbours().del(message).execute();
        gone_is_fine(
            self.request("RTM_DELNEIGH", &format!("fdb {mac} dst {vtep}"), call)
                .await,
        )
    }
}
