//! Decapsulation: removes the outer headers, then hands the packet to the pod, or to the IP stack.

use aya_ebpf::bindings::{
    BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{bpf_csum_level, bpf_redirect, bpf_skb_adjust_room};
use overlay_common::Family;
use overlay_common::packet::Ethernet;
use overlay_common::schema::PodEntry;

use crate::forward::{self, Error};
use crate::skb::Skb;

/// The segment size stays, because otherwise segmentation behind the pod would go wrong; and the
/// checksum state stays.
pub const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;

/// Decapsulates a packet and hands it to `pod`; returns the tc action.
#[inline(always)]
pub fn decapsulate<F: Family, O: Family>(
    skb: &Skb,
    pod: &PodEntry,
    gateway_mac: [u8; 6],
    inner: F::Header,
) -> Result<i32, Error> {
    open::<O>(skb)?;
    forward::deliver::<F>(skb, pod, gateway_mac, inner).map_err(|_| Error::Changed)
}

/// An Ethernet header in the layout of the wire.
#[repr(C)]
struct Front {
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: [u8; 2],
}

/// Decapsulates a packet and hands it to the IP stack as one that `device` has received; returns
/// the tc action.
#[inline(always)]
pub fn hand_in<O: Family>(skb: &Skb, device: u32, ethernet: Ethernet) -> Result<i32, Error> {
    open::<O>(skb)?;
    let front = Front {
        destination: ethernet.destination,
        source: ethernet.source,
        ethertype: ethernet.ethertype.to_be_bytes(),
    };
    if skb.store(&front, 0) {
        // SAFETY: the packet has its Ethernet header.
        Ok(unsafe { bpf_redirect(device, u64::from(BPF_F_INGRESS)) } as i32)
    } else {
        Err(Error::Changed)
    }
}

/// Removes the outer headers, up to the inner Ethernet header; the outer Ethernet header stays in
/// the place of the inner one.
#[inline(always)]
fn open<O: Family>(skb: &Skb) -> Result<(), Error> {
    let raw = skb.as_ptr();
    // SAFETY: on failure the kernel leaves the buffer as it was.
    let shrunk =
        unsafe { bpf_skb_adjust_room(raw, -(O::VXLAN_OVERHEAD as i32), BPF_ADJ_ROOM_MAC, FLAGS) };
    if shrunk != 0 {
        return Err(Error::Untouched);
    }
    // The device has verified the outer checksum first, so that one verified level has to be
    // removed with the outer header. The helper fails where the device verified nothing; then there
    // is no level to remove.
    // SAFETY: the helper changes the buffer's checksum state only.
    unsafe { bpf_csum_level(raw, u64::from(BPF_CSUM_LEVEL_DEC)) };
    Ok(())
}
