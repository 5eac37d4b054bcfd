//! What the kernel should hold against what it holds: a pure difference.
//!
//! One [`KernelState`] comes from leases ([`crate::backend`]), one from the kernel
//! ([`crate::kernel::observe`]), and [`diff`] names the [`Action`]s between them. Nothing here has
//! a memory: whatever was lost or changed behind our back, by whomever, shows in the next
//! difference.

mod action;
mod diff;
mod state;

pub use action::{Action, RecreateReason};
pub use diff::diff;
pub use state::{KernelChange, KernelState, OverlayDevice, Route, VxlanAttributes, is_of_interest};
