//! The code that the eBPF programs and user space share.
//!
//! The eBPF programs and the user-space tools use the same map types ([`schema`]), the same
//! verdicts ([`verdict`]) and the same decision functions ([`decide`]): the programs call the
//! functions with maps, `overlayctl` and the tests with tables of their own. No code here
//! allocates, panics on packet data, or depends on the kernel. The feature `std` adds [`visit`] and
//! [`snapshot`], for users of the decision in user space.

#![cfg_attr(not(test), no_std)]

#[cfg(all(feature = "std", not(test)))]
extern crate std;

pub mod checksum;
pub mod decide;
pub mod event;
pub mod family;
pub mod packet;
pub mod schema;
#[cfg(feature = "std")]
pub mod snapshot;
pub mod socket;
pub mod transport;
pub mod verdict;
#[cfg(feature = "std")]
pub mod visit;
pub mod vxlan;

pub use family::{Family, V4, V6};
pub use verdict::{Hook, Verdict};
