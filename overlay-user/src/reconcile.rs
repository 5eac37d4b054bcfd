//! The difference between the state that the kernel should hold and the state that it holds; pure.
//!
//! One [`KernelState`] comes from leases ([`crate::backend`]), one from the kernel
//! ([`crate::kernel::observe`]), and [`diff`] names the [`Action`]s between them. Nothing here has
//! a memory, so that a foreign change or a loss of any origin appears in the next difference.

mod action;
mod diff;
mod state;

pub use action::{Action, RecreateReason};
pub use diff::diff;
pub use state::{KernelChange, KernelState, OverlayDevice, Route, VxlanAttributes, is_of_interest};
