//! tc egress of pods' host veths, and of the devices that lead to other nodes: what the IP stack
//! sends.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{Leaving, leaving};
use overlay_common::packet::Packet as _;
use overlay_common::{Hook, Verdict};

use crate::maps::{Mapped, Maps, Served, count, remember};
use crate::skb::Skb;

#[classifier]
pub fn ov_pod_out(ctx: TcContext) -> i32 {
    handle::<Served>(&Skb::new(&ctx), Hook::PodOut)
}

#[classifier]
pub fn ov_vtep_out(ctx: TcContext) -> i32 {
    handle::<Served>(&Skb::new(&ctx), Hook::VtepOut)
}

#[inline(always)]
fn handle<F: Mapped>(skb: &Skb, hook: Hook) -> i32 {
    let verdict = match leaving::<F, F, _, _>(skb, &Maps, hook, skb.handed_over()) {
        Leaving::Remember(flow) => {
            // SAFETY: the helper takes nothing and cannot fail.
            remember(&flow, unsafe { bpf_ktime_get_ns() });
            Verdict::Remembered
        }
        Leaving::Pass(verdict) => verdict,
    };
    count(hook, verdict, skb.frame_len());
    TC_ACT_UNSPEC
}
