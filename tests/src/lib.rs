//! A lab of network namespaces, and helpers for the end-to-end tests and the demo.
//!
//! [`Lab::up`] makes nodes joined by an underlay, a store, running agents and pods; dropping the
//! [`Lab`] removes all of them. No code here changes the network of the machine itself.
//!
//! ```no_run
//! use overlay_tests::{Lab, Options};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::up(Options::for_test("ping"))?;
//! let target = lab.pod(2, 1).address().to_string();
//! let answer = lab.pod(1, 1).exec(["ping", "-c1", "-W2", &target])?;
//! assert!(answer.status.success());
//! # Ok(())
//! # }
//! ```

pub mod command;
pub mod containers;
pub mod conversation;
pub mod fast_path;
pub mod faults;
pub mod flags;
pub mod frame;
pub mod hostile;
pub mod http;
pub mod image;
pub mod interrupt;
pub mod kube_proxy;
pub mod kubernetes;
pub mod lab;
pub mod load;
pub mod machine;
pub mod measure;
pub mod netns;
pub mod pace;
pub mod packet;
pub mod pins;
pub mod process;
pub mod reach;
pub mod rest;
pub mod soak;
pub mod status;
pub mod traffic;
pub mod wait;

pub use lab::{AGENT_FLAGS_ENV, Agent, BackendKind, Lab, Node, Options, Pod, StoreKind};
pub use netns::Namespace;
pub use process::{Process, Running};
pub use wait::wait_until;
