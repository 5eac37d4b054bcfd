//! What the kernel should hold against what it holds: a pure difference.
//!
//! [`Desired`] comes from leases, [`Observed`] from the kernel ([`crate::kernel::observe`]), and
//! [`diff`] names the [`Action`]s between them. Nothing here has a memory: whatever was lost or
//! changed behind our back, by whomever, shows in the next difference.

mod action;
mod desired;
mod diff;
mod observed;

pub use action::{Action, RecreateReason};
pub use desired::{Desired, Device};
pub use diff::diff;
pub use observed::{Change, Observed, ObservedDevice, Route, VxlanAttributes, is_of_interest};
