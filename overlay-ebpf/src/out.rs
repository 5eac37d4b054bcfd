//! tc egress of pods' host veths, and of the devices that lead to other nodes: packets from the IP
//! stack.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{Leaving, leaving, sending};
use overlay_common::packet::Packet as _;
use overlay_common::{Hook, Verdict};

use crate::encap::encapsulate;
use crate::forward::Error;
use crate::maps::{Mapped, Maps, Served, count, remember};
use crate::skb::Skb;

#[classifier]
pub fn ov_pod_out(ctx: TcContext) -> i32 {
    to_pod::<Served>(&Skb::new(&ctx))
}

#[classifier]
pub fn ov_vtep_out(ctx: TcContext) -> i32 {
    to_node::<Served>(&Skb::new(&ctx))
}

#[inline(always)]
fn to_pod<F: Mapped>(skb: &Skb) -> i32 {
    let leaving = leaving::<F, F, _, _>(skb, &Maps, Hook::PodOut, skb.handed_over());
    count(Hook::PodOut, note(leaving), skb.frame_len());
    TC_ACT_UNSPEC
}

#[inline(always)]
fn to_node<F: Mapped>(skb: &Skb) -> i32 {
    let bytes = skb.frame_len();
    let sending = sending::<F, F, _, _>(skb, &Maps, skb.handed_over());
    let noted = note(sending.leaving);
    let (verdict, action) = match sending.tunnel {
        None => (noted, TC_ACT_UNSPEC),
        Some(it) => match encapsulate(skb, it.config, it.peer, it.header, it.len, it.ecn) {
            Ok(action) => (Verdict::EncapsulatedForStack, action),
            Err(Error::Untouched) => (noted, TC_ACT_UNSPEC),
            Err(Error::Changed) => (Verdict::Failed, TC_ACT_SHOT),
        },
    };
    count(Hook::VtepOut, verdict, bytes);
    action
}

/// Remembers the flow of a packet that leaves, if the outcome demands it; returns the verdict.
#[inline(always)]
fn note<F: Mapped>(leaving: Leaving<F>) -> Verdict {
    match leaving {
        Leaving::Remember(flow) => {
            // SAFETY: the helper takes nothing and cannot fail.
            remember(&flow, unsafe { bpf_ktime_get_ns() });
            Verdict::Remembered
        }
        Leaving::Pass(verdict) => verdict,
    }
}
