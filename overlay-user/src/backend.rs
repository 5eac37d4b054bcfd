//! How a peer is reached, as told by its lease. Pure: nothing here touches the kernel or the store.

pub mod vxlan;

pub use vxlan::{Peer, own_attributes, peers};
