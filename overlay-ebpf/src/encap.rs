//! Encapsulation: puts outer headers in front of an IP packet, then sends it by the NIC.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_ADJ_ROOM_NO_CSUM_RESET, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_skb_adjust_room};
use overlay_common::Family;
use overlay_common::schema::{Config, PeerEntry};
use overlay_common::vxlan;

use crate::forward::{self, Error};
use crate::skb::Skb;

/// Announces the new headers to the kernel, so that the kernel can segment super-packets later: IP
/// of the underlay's family and UDP around an Ethernet header (`BPF_F_ADJ_ROOM_ENCAP_L2_ETH` needs
/// Linux 5.13). The segment size stays, because segments are cut from the payload, whatever the
/// headers.
pub const fn flags<O: Family>() -> u64 {
    BPF_F_ADJ_ROOM_FIXED_GSO as u64
        | O::ENCAP_L3
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
        | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64
        | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
        | INNER_ETHERNET_LEN << 56
}
const INNER_ETHERNET_LEN: u64 = 14;

/// All bytes that are written: the prepared headers and the inner IP header after one hop more.
#[repr(C)]
struct Front<F: Family, O: Family> {
    outer: O::Front,
    inner: F::Header,
}

/// Encapsulates a packet and sends it to `peer`; returns the tc action.
#[inline(always)]
pub fn encapsulate<F: Family, O: Family>(
    skb: &Skb,
    config: &Config<F, O>,
    peer: &PeerEntry<O>,
    inner: F::Header,
    len: u32,
    ecn: u8,
) -> Result<i32, Error> {
    let raw = skb.as_ptr();
    // The hash is computed before the packet changes, because it must be that of the inner flow, as
    // for the kernel's own device.
    // SAFETY: the helper takes any buffer.
    let hash = unsafe { bpf_get_hash_recalc(raw) };
    let overhead = O::VXLAN_OVERHEAD as i32;
    // SAFETY: on failure with a fixed segment size the kernel leaves the buffer unchanged.
    let grown =
        unsafe { bpf_skb_adjust_room(raw, overhead, BPF_ADJ_ROOM_MAC, const { flags::<O>() }) };
    if grown != 0 {
        return Err(Error::Untouched);
    }
    let mut front = Front::<F, O> {
        outer: peer.header,
        inner,
    };
    let id = || {
        vxlan::identification(F::identification(&inner), hash, || {
            // SAFETY: the helper takes nothing and cannot fail.
            unsafe { bpf_get_prandom_u32() }
        })
    };
    let port = vxlan::source_port(hash, config.source_port_min, config.source_port_count);
    O::stamp(&mut front.outer, len, ecn, id, port);
    if skb.store(&front, 0) {
        Ok(forward::send(skb, config, peer))
    } else {
        Err(Error::Changed)
    }
}
