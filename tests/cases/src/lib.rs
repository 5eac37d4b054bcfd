//! What the decision is tested with, in Rust and in the kernel: [`world`] is a made-up node,
//! [`frames`] makes packets, [`cases`] are packets for every way that the decision can end, and for
//! what must not change it; [`translate`] tells them in other families.

#![expect(
    missing_docs,
    reason = "written for tests, where the names say what there is"
)]

pub mod cases;
pub mod frames;
pub mod translate;
pub mod world;

pub use cases::Case;
