//! Hostile packets: streams of frames that forge fields or contradict themselves, and floods of
//! such frames.
//!
//! A [`Scene`] knows the addresses of a lab, a [`Kind`] builds the frames, a [`Flood`] sends them
//! at a given rate. Every frame that no pod may ever receive carries [`MARK`].

mod flood;
mod kind;
mod scene;

pub use flood::{Flood, Pace, Sent};
pub use kind::{Kind, Origin};
pub use scene::{Host, PodAddress, Scene, THIRD};

/// The mark in the innermost payload of forged packets.
pub const MARK: &[u8] = b"OVERLAY-FORGED!!";

/// Whether a frame, or a part of one, carries the mark.
pub fn is_marked(frame: &[u8]) -> bool {
    frame.windows(MARK.len()).any(|bytes| bytes == MARK)
}
