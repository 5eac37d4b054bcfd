//! What the two sides of the overlay share.
//!
//! The eBPF programs and the user-space tools use the same map types ([`schema`]), the same
//! verdicts ([`verdict`]) and the same decision functions ([`decide`]): the programs call them with
//! maps behind, `overlayctl` and the tests with tables of their own behind. Nothing here allocates,
//! panics on packet data, or knows of the kernel. With the feature `std` come [`visit`] and
//! [`snapshot`], for those who ask the decision in user space.

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
