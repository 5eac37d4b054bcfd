//! The interface of a backend, and its terms: this node, its peers, the ways to the peers.

use std::fmt::Debug;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::lease::{Attributes, BackendData, RejectReason};
use crate::mac::MacAddr;
use crate::marks::ROUTE_PROTOCOL;
use crate::per_family::PerFamily;
use crate::reconcile::{KernelState, OverlayDevice, Route};

/// How packets get to other nodes: what the leases say about the way, and which state the kernel
/// should hold for it. A backend reads leases and names kernel state, and changes neither.
pub trait Backend: Debug + Send + Sync {
    /// The backend's name in leases and in the network configuration.
    fn name(&self) -> &'static str;

    /// Name of the device that the backend makes; `None` where the backend makes none.
    fn device(&self) -> Option<String> {
        None
    }

    /// Whether packets to some peers leave without encapsulation.
    fn has_direct_ways(&self) -> bool;

    /// Longest packet of a pod, in bytes, where the underlay takes `underlay` bytes.
    fn mtu(&self, underlay: u32) -> u32;

    /// The backend's own data in this node's lease. `mac` is the MAC address of the device that the
    /// backend makes.
    fn data(&self, _mac: MacAddr) -> Option<Value> {
        None
    }

    /// The attributes in this node's lease: of each family the public IP and the MAC address of the
    /// device that the backend makes.
    fn attributes(&self, ends: &PerFamily<(IpAddr, MacAddr)>) -> Attributes {
        let data = |end: Option<&(IpAddr, MacAddr)>| {
            let data = end.and_then(|(_, mac)| self.data(*mac));
            data.map(BackendData::from)
        };
        Attributes {
            public_ip: ends.map(|(public_ip, _)| *public_ip),
            backend_type: Some(self.name().to_owned()),
            backend_data: PerFamily::new(data(ends.v4()), data(ends.v6())),
        }
    }

    /// The way to another node, of whose lease `data` is the backend's own data.
    ///
    /// # Errors
    /// Why there is no way. Subnet, backend type and public IP of the lease are checked already.
    fn way(
        &self,
        here: &Here,
        public_ip: IpAddr,
        data: Option<&Value>,
    ) -> Result<Way, RejectReason>;

    /// The wanted state of the device that the backend makes.
    fn overlay_device(&self, _here: &Here) -> Option<OverlayDevice> {
        None
    }

    /// The kernel's entries that lead to a peer.
    fn entries(&self, here: &Here, peer: &Peer) -> Entries;

    /// The state that the kernel should hold.
    fn state(&self, here: &Here, peers: &[Peer]) -> KernelState {
        let mut state = KernelState {
            network: Some(here.network),
            device: self.overlay_device(here),
            forwarding: true,
            ..KernelState::default()
        };
        for peer in peers {
            let entries = self.entries(here, peer);
            state.routes.insert(entries.route);
            state.neighbours.extend(entries.neighbour);
            state.fdb.extend(entries.fdb);
        }
        state
    }
}

/// This node, as far as backends depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// The whole overlay.
    pub network: IpNet,
    /// This node's subnet.
    pub subnet: IpNet,
    /// The address that peers send to.
    pub public_ip: IpAddr,
    /// MAC address of the device that the backend makes.
    pub mac: MacAddr,
    /// The underlay's device.
    pub nic: UnderlayDevice,
    /// The prefixes of the underlay's device: the addresses in them are reached without a router.
    pub on_link: Vec<IpNet>,
}

/// The underlay's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderlayDevice {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// MTU in bytes.
    pub mtu: u32,
}

impl Here {
    /// Whether packets to `address` pass no router.
    #[must_use]
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        self.on_link.iter().any(|prefix| prefix.contains(&address))
    }
}

/// Another node, with everything that is needed to send to the node's pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// The subnet of the node's pods.
    pub subnet: IpNet,
    /// The node's address on the underlay: with VXLAN the outer destination of packets to the node,
    /// and the only outer source from which the node's packets are accepted.
    pub vtep: IpAddr,
    /// How packets get to the node.
    pub way: Way,
}

/// How packets get to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Encapsulated (RFC 7348).
    Vxlan {
        /// Inner destination MAC address: that of the peer's VXLAN device.
        mac: MacAddr,
    },
    /// Without encapsulation, to the peer's address on the common link.
    Direct,
}

impl Peer {
    /// MAC address of the peer's VXLAN device; `None` where the way is direct.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddr> {
        match self.way {
            Way::Vxlan { mac } => Some(mac),
            Way::Direct => None,
        }
    }
}

/// The state that the kernel should hold for one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// The route to the peer's subnet.
    pub route: Route,
    /// A permanent neighbour on the backend's device.
    pub neighbour: Option<(IpAddr, MacAddr)>,
    /// The VTEP of a MAC address, in the FDB of the backend's device.
    pub fdb: Option<(MacAddr, IpAddr)>,
}

impl Entries {
    /// The entries for a peer on the common link: a route to the peer's subnet by way of the peer's
    /// own address.
    #[must_use]
    pub fn direct(here: &Here, peer: &Peer) -> Self {
        Self {
            route: Route {
                subnet: peer.subnet,
                gateway: Some(peer.vtep),
                device: Some(here.nic.name.clone()),
                onlink: false,
                protocol: ROUTE_PROTOCOL,
                metric: 0,
            },
            neighbour: None,
            fdb: None,
        }
    }
}
