//! Decapsulation: outer headers off, then into the pod.

use core::mem::offset_of;

use aya_ebpf::bindings::{
    BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{
    bpf_csum_level, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_store_bytes,
};
use overlay_common::schema::PodEntry;
use overlay_common::{Family, vxlan};

use crate::encap::Error;
use crate::skb::Skb;

/// The segment size stays, or segmentation behind the pod would go wrong; and the checksum state stays.
pub const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;

/// What stands in front of the inner payload afterwards. It starts at `destination`: with two bytes before
/// that the IP header is aligned, and written by words.
#[repr(C)]
struct Front<F: Family> {
    _align: [u8; 2],
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: [u8; 2],
    inner: F::Header,
}

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
    let shrunk = unsafe {
        bpf_skb_adjust_room(
            raw,
            -(vxlan::overhead::<O>() as i32),
            BPF_ADJ_ROOM_MAC,
            FLAGS,
        )
    };
    if shrunk != 0 {
        return Err(Error::Untouched);
    }
    // What the device verified was the outer checksum first: one level fewer is known now. The helper fails
    // where the device verified nothing, which is as well.
    // SAFETY: the helper changes the buffer's checksum state only.
    unsafe { bpf_csum_level(raw, u64::from(BPF_CSUM_LEVEL_DEC)) };
    let front = Front::<F> {
        _align: [0; 2],
        destination: pod.mac,
        source: gateway_mac,
        ethertype: F::ETHERTYPE.to_be_bytes(),
        inner,
    };
    let start = offset_of!(Front<F>, destination);
    // SAFETY: the helper reads as many bytes as the struct has from `destination` on, and checks the
    // buffer's bounds.
    let failed = unsafe {
        bpf_skb_store_bytes(
            raw,
            0,
            (&raw const front).byte_add(start).cast(),
            (size_of::<Front<F>>() - start) as u32,
            0,
        )
    };
    if failed != 0 {
        return Err(Error::Changed);
    }
    skb.reset_queue();
    // SAFETY: a tc ingress program may redirect to a veth peer.
    Ok(unsafe { bpf_redirect_peer(pod.ifindex, 0) } as i32)
}
