//! The programs in this machine's kernel (`BPF_PROG_TEST_RUN`) against the decision in Rust: the
//! same packets over the same tables have to end in the same verdict, the same bytes, the same
//! counters and the same remembered flows. Needs root.
//!
//! [`check::check`] compares packet by packet, [`batch`] many at a time; [`campaign`] makes packets
//! and tables up, keeps those that lead the decision a new way ([`corpus`]), and cuts what differs
//! down to the least that shows it ([`minimise`]). [`wire`] judges what the programs write by means
//! that share no code with them.
//!
//! `BPF_PROG_TEST_RUN` makes neither VLAN tags beside the packet nor verified checksums, shows no
//! mark for later hooks, and carries out no redirection: what a redirected packet arrives as is for
//! the labs to test.

pub mod batch;
pub mod campaign;
pub mod check;
pub mod corpus;
pub mod expected;
pub mod kernel;
pub mod minimise;
pub mod mutate;
pub mod namespace;
pub mod path;
pub mod recording;
pub mod report;
pub mod wire;

pub use kernel::Kernel;
pub use namespace::{in_kernel, in_kernel_for};
pub use overlay_cases::Case;
pub use overlay_cases::cases::Outcome;
pub use overlay_cases::world::World;
pub use overlay_common::visit::Visit;
