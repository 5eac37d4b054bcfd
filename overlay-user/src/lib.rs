//! The user side of the overlay: what the agent, the CNI plugin and the operator's tool are made
//! of.
//!
//! Kernel-facing code lives at the edges ([`kernel`] changes the kernel's network, [`datapath`]
//! calls bpf(2)); all other code is pure and tested without root.

pub mod agent;
pub mod allocator;
pub mod backend;
pub mod cni;
pub mod config;
pub mod datapath;
pub mod deadline;
pub mod files;
pub mod ipam;
pub mod kernel;
pub mod lease;
pub mod liveness;
pub mod mac;
pub mod marks;
pub mod observe;
pub mod per_family;
pub mod pod;
pub mod privilege;
pub mod reconcile;
pub mod service;
pub mod shared_map;
pub mod store;
