//! What a backend is, and what it speaks of: this node, its peers, the ways to them.

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

/// How packets get to other nodes: what the leases say about it, and what the kernel should hold
/// for it. It reads leases and names kernel state, and touches nothing.
pub trait Backend: Debug + Send + Sync {
    /// The backend's name in leases and in the network configuration.
    fn name(&self) -> &'static str;

    /// Name of the device that it makes; none where it makes none.
    fn device(&self) -> Option<String> {
        None
    }

    /// Whether packets to some peers leave as they are.
    fn has_direct_ways(&self) -> bool;

    /// Longest packet of a pod, in bytes, where the underlay takes `underlay` bytes.
    fn mtu(&self, underlay: u32) -> u32;

    /// The backend's own data in this node's lease. `mac` is the MAC address of the device that the
    /// backend makes.
    fn data(&self, _mac: MacAddr) -> Option<Value> {
        None
    }

    /// What this node's lease says: of each family the public IP and the MAC address of the device
    /// that the backend makes.
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
    /// Why there is none. Subnet, backend type and public IP of the lease are good already.
    fn way(
        &self,
        here: &Here,
        public_ip: IpAddr,
        data: Option<&Value>,
    ) -> Result<Way, RejectReason>;

    /// The device that it makes, as it should be.
    fn overlay_device(&self, _here: &Here) -> Option<OverlayDevice> {
        None
    }

    /// What leads to a peer.
    fn entries(&self, here: &Here, peer: &Peer) -> Entries;

    /// What the kernel should hold.
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
    /// Whether packets to `address` meet no router on their way.
    #[must_use]
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        self.on_link.iter().any(|prefix| prefix.contains(&address))
    }
}

/// Another node, with all that is needed to send to its pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// The node's pods have their addresses here.
    pub subnet: IpNet,
    /// The node's address on the underlay: with VXLAN the outer destination of packets to the node,
    /// and the only outer source they are taken from.
    pub vtep: IpAddr,
    /// How packets get there.
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
    /// As they are, to the peer's address on the common link.
    Direct,
}

impl Peer {
    /// MAC address of the peer's VXLAN device, where that is how it is reached.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddr> {
        match self.way {
            Way::Vxlan { mac } => Some(mac),
            Way::Direct => None,
        }
    }
}

/// What the kernel should hold for one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// The route to its subnet.
    pub route: Route,
    /// A permanent neighbour on the backend's device.
    pub neighbour: Option<(IpAddr, MacAddr)>,
    /// Where a MAC address is, in the FDB of the backend's device.
    pub fdb: Option<(MacAddr, IpAddr)>,
}

impl Entries {
    /// Of a peer on the common link: its subnet by way of its own address.
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
