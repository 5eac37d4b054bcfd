//! How packets get to other nodes: a [`Backend`] for each way, named as flannel names it. Pure:
//! nothing here touches the kernel or the store.

use std::sync::Arc;

use crate::config::BackendConfig;

mod host_gw;
pub(crate) mod judge;
mod model;
pub mod peers;
mod vxlan;

pub use host_gw::HostGw;
pub use model::{Backend, Entries, Here, Peer, UnderlayDevice, Way};
pub use peers::{PeerMap, Peers};
pub use vxlan::{Vxlan, mac_of};

/// The backend that the network configuration names.
#[must_use]
pub fn of(config: &BackendConfig) -> Arc<dyn Backend> {
    match config {
        BackendConfig::Vxlan(config) => Arc::new(Vxlan(*config)),
        BackendConfig::HostGw => Arc::new(HostGw),
    }
}
