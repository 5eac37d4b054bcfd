//! How a peer is reached, as told by its lease. Pure: nothing here touches the kernel or the store.

pub mod peers;
pub mod vxlan;

pub use peers::{PeerMap, Peers};
pub use vxlan::{Peer, own_attributes};
