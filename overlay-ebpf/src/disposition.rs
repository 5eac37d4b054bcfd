//! The end of a packet's visit to an ingress hook.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use overlay_common::decide::Pass;
use overlay_common::{Hook, Verdict};

use crate::events;
use crate::maps::{Mapped, count};
use crate::skb::Skb;

/// The last step of a visit, taken when the verdict is known.
pub enum Disposition {
    /// The packet is finished with this tc action.
    Done(i32),
    /// The packet is dropped, and reported by an event if the agent has enabled events.
    Refused,
    /// The packet is left to the kernel; for the number see [`Pass::plain`].
    HandOver(Option<u32>),
    /// The packet goes to the IP stack by another device; the values are the tc action and the
    /// number as above.
    HandIn(i32, Option<u32>),
}

impl Disposition {
    /// Leaves a packet to the kernel.
    #[inline(always)]
    pub fn pass(pass: Pass) -> (Verdict, Self) {
        (pass.verdict, Self::HandOver(pass.plain))
    }
}

/// Counts a packet of `bytes` bytes and ends its visit; returns the tc action.
///
/// The counter comes before the mark, because the verdict is not needed any more after the counter.
/// Therefore the verifier checks the code of the mark once, and not once for every verdict.
#[inline(always)]
pub fn end<F: Mapped>(
    skb: &Skb,
    hook: Hook,
    bytes: u32,
    (verdict, disposition): (Verdict, Disposition),
) -> i32 {
    count(hook, verdict, bytes);
    let (action, plain) = match disposition {
        Disposition::Done(action) => return action,
        Disposition::Refused => {
            events::tell::<F, _>(skb, hook, verdict);
            return TC_ACT_SHOT;
        }
        Disposition::HandOver(plain) => (TC_ACT_UNSPEC, plain),
        Disposition::HandIn(action, plain) => (action, plain),
    };
    skb.hand_over::<F>(plain);
    action
}
