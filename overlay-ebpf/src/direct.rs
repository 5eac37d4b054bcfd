//! Routing without encapsulation: other MAC addresses, one hop more, and on.

use core::mem::offset_of;

use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_store_bytes};
use overlay_common::packet::ETHERNET_LEN;
use overlay_common::schema::{Config, PEER_NEXT_HOP, Peer, Pod};
use overlay_common::{Family as _, V4};

use crate::encap::Error;
use crate::maps::next_hops_are_fresh;
use crate::skb::Skb;

/// Ethernet and IP header. It starts at `destination`: with two bytes before that the IP header is
/// aligned, and written by words.
#[repr(C)]
struct Front {
    _align: [u8; 2],
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: [u8; 2],
    ip: [u32; 5],
}

/// Sends a packet to `peer` as it is; returns the tc action.
#[inline(always)]
pub fn route(skb: &Skb, config: &Config<V4>, peer: &Peer<V4>, ip: [u32; 5]) -> Result<i32, Error> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = peer.header;
    rewrite(skb, [a, b, c, d, e, f], [g, h, i, j, k, l], ip)?;
    // On its way out it meets the program that looks for what the stack has translated.
    skb.mark_plain(ETHERNET_LEN);
    skb.reset_queue();
    let nic = config.underlay_ifindex;
    if peer.flags & PEER_NEXT_HOP != 0 && next_hops_are_fresh() {
        // SAFETY: the packet has its Ethernet header.
        return Ok(unsafe { bpf_redirect(nic, 0) } as i32);
    }
    // The kernel's route to the peer's subnet and its neighbour table fill in the MAC addresses.
    // SAFETY: without parameters the helper takes the next hop from the packet's own header.
    Ok(unsafe { bpf_redirect_neigh(nic, core::ptr::null_mut(), 0, 0) } as i32)
}

/// Hands a packet to `pod`; returns the tc action.
#[inline(always)]
pub fn deliver(skb: &Skb, pod: &Pod, gateway_mac: [u8; 6], ip: [u32; 5]) -> Result<i32, Error> {
    rewrite(skb, pod.mac, gateway_mac, ip)?;
    skb.reset_queue();
    // SAFETY: a tc ingress program may redirect to a veth peer.
    Ok(unsafe { bpf_redirect_peer(pod.ifindex, 0) } as i32)
}

/// Writes the headers anew. The sum over an IP header with a right checksum stays, so that what the
/// device has summed up stays true.
#[inline(always)]
fn rewrite(skb: &Skb, destination: [u8; 6], source: [u8; 6], ip: [u32; 5]) -> Result<(), Error> {
    let front = Front {
        _align: [0; 2],
        destination,
        source,
        ethertype: V4::ETHERTYPE.to_be_bytes(),
        ip,
    };
    let start = offset_of!(Front, destination);
    // SAFETY: the helper reads as many bytes as the struct has from `destination` on, and checks
    // the buffer's bounds.
    let failed = unsafe {
        bpf_skb_store_bytes(
            skb.as_ptr(),
            0,
            (&raw const front).byte_add(start).cast(),
            (size_of::<Front>() - start) as u32,
            0,
        )
    };
    // A buffer that cannot be made writable is left as it was.
    if failed != 0 {
        Err(Error::Untouched)
    } else {
        Ok(())
    }
}
