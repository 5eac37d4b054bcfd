//! tc egress of pods' host veths, and of the devices that lead to other nodes: what the IP stack
//! sends.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{Leaving, leaving};
use overlay_common::packet::Packet as _;
use overlay_common::{Hook, V4, V6, Verdict};

use crate::maps::{Mapped, Maps, count, is_ipv6, remember};
use crate::skb::Skb;

#[classifier]
pub fn ov_pod_out(ctx: TcContext) -> i32 {
    watch(&ctx, Hook::PodOut)
}

#[classifier]
pub fn ov_vtep_out(ctx: TcContext) -> i32 {
    watch(&ctx, Hook::VtepOut)
}

#[inline(always)]
fn watch(ctx: &TcContext, hook: Hook) -> i32 {
    let skb = Skb::new(ctx);
    if is_ipv6(skb.ethertype()) {
        ipv6(&skb, hook)
    } else {
        handle::<V4>(&skb, hook)
    }
}

/// Apart, so that it costs IPv4 nothing.
#[inline(never)]
fn ipv6(skb: &Skb, hook: Hook) -> i32 {
    handle::<V6>(skb, hook)
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
