//! The operator's decisions: the network's configuration in the store, the agent's flags, and the
//! environment file that the agent writes for the CNI plugin.

pub mod duration;
pub mod flags;
mod fold;
pub mod go_flags;
pub mod net_conf;
pub mod pool;
pub mod secret;
pub mod subnet_env;

pub use flags::AgentFlags;
pub(crate) use fold::fold_keys;
pub use net_conf::{BackendConfig, NetworkConfig, VxlanConfig};
pub use pool::SubnetPool;
pub use secret::Secret;
pub use subnet_env::{Nets, SubnetEnv};
