//! Hostile packets: streams of frames that forge something or lie about themselves, and floods of
//! them.
//!
//! A [`Scene`] knows the addresses of a lab, a [`Kind`] writes its frames, a [`Flood`] sends them
//! at a given rate. Every frame that no pod may ever receive carries [`MARK`].

mod flood;
mod kind;
mod scene;

pub use flood::{Flood, Pace, Sent};
pub use kind::{Kind, Origin};
pub use scene::{Host, PodAddress, Scene, THIRD};

/// What forged packets carry in their innermost payload.
pub const MARK: &[u8] = b"OVERLAY-FORGED!!";

/// Whether a frame, or what is left of one, carries the mark.
pub fn is_marked(frame: &[u8]) -> bool {
    frame.windows(MARK.len()).any(|bytes| bytes == MARK)
}
