//! Programs that are never attached: the agent runs them on invented packets to find out the
//! kernel's features.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::helpers::bpf_skb_adjust_room;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::{Family as _, V4};

use crate::skb::Skb;
use crate::{decap, encap};

/// Whether encapsulation works, with the flags it needs: 0, or the helper's error number.
#[classifier]
pub fn ov_probe_encap(ctx: TcContext) -> i32 {
    adjust(
        &ctx,
        V4::VXLAN_OVERHEAD as i32,
        const { encap::flags::<V4>() },
    )
}

/// Whether decapsulation works, with the flags it needs: 0, or the helper's error number.
#[classifier]
pub fn ov_probe_decap(ctx: TcContext) -> i32 {
    adjust(&ctx, -(V4::VXLAN_OVERHEAD as i32), decap::FLAGS)
}

#[inline(always)]
fn adjust(ctx: &TcContext, by: i32, flags: u64) -> i32 {
    // SAFETY: the buffer is the kernel's scratch copy of a packet of ours.
    -unsafe { bpf_skb_adjust_room(Skb::new(ctx).as_ptr(), by, BPF_ADJ_ROOM_MAC, flags) as i32 }
}
