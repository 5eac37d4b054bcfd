//! Forwarding: writes the headers, then sends the packet to a pod or to the next hop.

use core::mem::offset_of;

use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use overlay_common::Family;
use overlay_common::packet::ETHERNET_LEN;
use overlay_common::schema::{Config, PEER_NEXT_HOP, PeerEntry, PodEntry};

use crate::maps::next_hops_are_fresh;
use crate::skb::Skb;

/// The state of a packet that cannot be sent on.
pub enum Error {
    /// The packet is unchanged.
    Untouched,
    /// The packet was changed, and the change cannot be undone.
    Changed,
}

/// Ethernet and IP header. The bytes to write start at `destination`: with two bytes before that
/// field the IP header is aligned, and written by words.
#[repr(C)]
struct Front<F: Family> {
    _align: [u8; 2],
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: [u8; 2],
    ip: F::Header,
}

/// Hands a packet to `pod`; returns the tc action.
#[inline(always)]
pub fn deliver<F: Family>(
    skb: &Skb,
    pod: &PodEntry,
    gateway_mac: [u8; 6],
    ip: F::Header,
) -> Result<i32, Error> {
    rewrite::<F>(skb, pod.mac, gateway_mac, ip)?;
    skb.reset_queue();
    // SAFETY: a tc ingress program may redirect to a veth peer.
    Ok(unsafe { bpf_redirect_peer(pod.ifindex, 0) } as i32)
}

/// Sends a packet to `peer` without encapsulation; returns the tc action.
#[inline(always)]
pub fn route<F: Family, O: Family>(
    skb: &Skb,
    config: &Config<F, O>,
    peer: &PeerEntry<O>,
    ip: F::Header,
) -> Result<i32, Error> {
    let (destination, source) = peer.outer_macs();
    rewrite::<F>(skb, destination, source, ip)?;
    // On its way out the packet passes the program that looks for translations by the stack.
    skb.hand_over::<F>(Some(ETHERNET_LEN));
    Ok(send(skb, config, peer))
}

/// Sends a packet out by the NIC, to the next hop on the way to `peer`; returns the tc action.
#[inline(always)]
pub fn send<F: Family, O: Family>(skb: &Skb, config: &Config<F, O>, peer: &PeerEntry<O>) -> i32 {
    skb.reset_queue();
    let nic = config.underlay_ifindex;
    if peer.flags & PEER_NEXT_HOP != 0 && next_hops_are_fresh() {
        // SAFETY: the packet has its Ethernet header.
        return unsafe { bpf_redirect(nic, 0) } as i32;
    }
    // The kernel's routes and its neighbour table fill in the MAC addresses.
    // SAFETY: without parameters the helper reads the next hop from the packet's own header.
    unsafe { bpf_redirect_neigh(nic, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Overwrites the headers. The sum over an IP header with a correct checksum does not change, so
/// that the device's sum over the packet stays valid.
#[inline(always)]
fn rewrite<F: Family>(
    skb: &Skb,
    destination: [u8; 6],
    source: [u8; 6],
    ip: F::Header,
) -> Result<(), Error> {
    let front = Front::<F> {
        _align: [0; 2],
        destination,
        source,
        ethertype: F::ETHERTYPE.to_be_bytes(),
        ip,
    };
    // A buffer that cannot be made writable stays unchanged.
    if skb.store(&front, offset_of!(Front<F>, destination)) {
        Ok(())
    } else {
        Err(Error::Untouched)
    }
}
