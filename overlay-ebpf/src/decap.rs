//! Decapsulation: outer headers off, then into the pod.

use aya_ebpf::bindings::{
    BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{bpf_csum_level, bpf_skb_adjust_room};
use overlay_common::Family;
use overlay_common::schema::PodEntry;

use crate::forward::{self, Error};
use crate::skb::Skb;

/// The segment size stays, or segmentation behind the pod would go wrong; and the checksum state
/// stays.
pub const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;

/// Decapsulates a packet and hands it to `pod`; returns the tc action.
#[inline(always)]
pub fn decapsulate<F: Family, O: Family>(
    skb: &Skb,
    pod: &PodEntry,
    gateway_mac: [u8; 6],
    inner: F::Header,
) -> Result<i32, Error> {
    let raw = skb.as_ptr();
    // SAFETY: on failure the kernel leaves the buffer as it was.
    let shrunk =
        unsafe { bpf_skb_adjust_room(raw, -(O::VXLAN_OVERHEAD as i32), BPF_ADJ_ROOM_MAC, FLAGS) };
    if shrunk != 0 {
        return Err(Error::Untouched);
    }
    // What the device verified was the outer checksum first: one level fewer is known now. The
    // helper fails where the device verified nothing, which is as well.
    // SAFETY: the helper changes the buffer's checksum state only.
    unsafe { bpf_csum_level(raw, u64::from(BPF_CSUM_LEVEL_DEC)) };
    forward::deliver::<F>(skb, pod, gateway_mac, inner).map_err(|_| Error::Changed)
}
