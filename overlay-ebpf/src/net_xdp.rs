//! XDP of the NIC: packets from the network, before the kernel makes socket buffers for them.
//!
//! Drops the packets that `ov_net_in` would refuse, at the lowest cost, and changes no other
//! packet.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use overlay_common::decide::refused_early;
use overlay_common::packet::Packet as _;
use overlay_common::{Hook, Verdict};

use crate::events;
use crate::maps::{Mapped, Maps, Served, count};
use crate::xdp_buff::XdpBuff;

/// Accepts packets in several buffers (jumbo frames), which needs Linux 5.18.
#[xdp(frags)]
pub fn ov_net_xdp(ctx: XdpContext) -> u32 {
    handle::<Served>(&XdpBuff::new(&ctx))
}

#[inline(always)]
fn handle<F: Mapped>(packet: &XdpBuff) -> u32 {
    let refused = refused_early::<F, F, _, _>(packet, &Maps);
    let verdict = refused.unwrap_or(Verdict::Passed);
    count(Hook::NetXdp, verdict, packet.frame_len());
    if refused.is_none() {
        return XDP_PASS;
    }
    events::tell::<F, _>(packet, Hook::NetXdp, verdict);
    XDP_DROP
}
