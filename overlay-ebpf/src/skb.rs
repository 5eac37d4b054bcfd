//! The kernel's socket buffer as a packet.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use overlay_common::Family;
use overlay_common::decide::mark;
use overlay_common::packet::Packet;

use crate::events::Copied;

/// `PACKET_HOST` of include/uapi/linux/if_packet.h.
const PACKET_HOST: u32 = 0;

/// Largest offset of a header that is read: Ethernet and IP with options, twice, and VXLAN.
pub const FURTHEST: u32 = 0xff;

/// The offset, hidden from the compiler: otherwise the compiler omits checks of an IPv6 packet's
/// offsets that it can prove itself, and the verifier cannot follow that proof.
#[inline(always)]
pub fn unproven(offset: u32) -> u32 {
    if cfg!(feature = "ipv6") {
        // SAFETY: the value is on the stack, and initialised.
        unsafe { (&raw const offset).read_volatile() }
    } else {
        offset
    }
}

/// A socket buffer that a tc program sees.
pub struct Skb {
    raw: *mut __sk_buff,
}

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self {
            raw: ctx.as_ptr().cast(),
        }
    }

    /// The pointer for the kernel's helpers.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut __sk_buff {
        self.raw
    }

    /// The mark of plain pod-to-pod traffic that a program of ours handed over to the stack, else
    /// zero.
    ///
    /// The mark is kept in `tc_index`, which travels with the buffer through bridge, forwarding,
    /// encapsulation, decapsulation and veths. No other part of the kernel writes the field on the
    /// way since the dsmark queueing discipline was removed (Linux 6.3). The mark never leaves the
    /// machine, because no packet on the wire has such a field. A foreign program that writes the
    /// field makes a flow look translated, which costs a short cut and breaks nothing.
    #[inline(always)]
    pub fn handed_over(&self) -> u16 {
        // SAFETY: the context is valid for the whole program; the verifier checks the access.
        unsafe { (*self.raw).tc_index as u16 }
    }

    /// Hands the packet over to the stack, or to a program of ours on its way out: `plain` is the
    /// offset of the IP header of plain pod-to-pod traffic.
    #[inline(always)]
    pub fn hand_over<F: Family>(&self, plain: Option<u32>) {
        let mark = plain.map_or(0, |ip_offset| mark::<F, _>(self, ip_offset));
        // SAFETY: as for `handed_over`; the field is writable for tc programs.
        unsafe { (*self.raw).tc_index = u32::from(mark) }
    }

    /// Marks the frame as one for this host. A veth marked the frame as another host's, because the
    /// receiver's MAC address is not the veth's own. The mark stays through `bpf_redirect_peer`
    /// before Linux 6.15 (c43272299488), and the receiver's IP stack would drop the frame.
    #[inline(always)]
    pub fn take_in(&self) {
        if !self.to_this_host() {
            // SAFETY: the helper takes the context and a constant; it fails for no type that a
            // received frame can have.
            unsafe { bpf_skb_change_type(self.raw, PACKET_HOST) };
        }
    }

    /// Overwrites the beginning of the frame by the bytes of `value` from its byte `start` on;
    /// `false` where that fails.
    #[inline(always)]
    pub fn store<T>(&self, value: &T, start: usize) -> bool {
        const { assert!(size_of::<T>() <= FURTHEST as usize) };
        let from = (&raw const *value).cast::<u8>();
        // SAFETY: the helper reads exactly the value's bytes from `start` on, and checks the
        // buffer's bounds. Callers' values have no padding.
        let failed = unsafe {
            let len = size_of::<T>() - start;
            bpf_skb_store_bytes(self.raw, 0, from.add(start).cast(), len as u32, 0)
        };
        failed == 0
    }

    /// Lets the stack choose a new transmit queue, because a veth stores its receive queue in this
    /// field, which would direct all pods' traffic to one queue of the NIC.
    #[inline(always)]
    pub fn reset_queue(&self) {
        // SAFETY: as for `hand_over`.
        unsafe { (*self.raw).queue_mapping = 0 }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let offset = unproven(offset);
        if offset > FURTHEST {
            return None;
        }
        // The words are not zeroed first, because that would be a call to memset, which the
        // verifier refuses.
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        let to: *mut u32 = words.as_mut_ptr().cast();
        // SAFETY: the two fields hold addresses; the verifier knows them as the packet's bounds.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        let from = start + offset as usize;
        if from + N * 4 <= end {
            for i in 0..N {
                // SAFETY: within the bounds just checked. Headers are at even offsets, so this read
                // may be misaligned, which Rust does not guarantee to work. The code relies on the
                // BPF back end, which emits one load of four bytes here, as C compilers do, but
                // four loads of one byte for `read_unaligned`. The verifier refuses the load where
                // the machine does not support it.
                unsafe { to.add(i).write(*((from + i * 4) as *const u32)) };
            }
        } else {
            // Headers may be in page fragments, which cannot be read directly.
            // SAFETY: the helper writes N words to an array of N words.
            let failed =
                unsafe { bpf_skb_load_bytes(self.raw.cast(), offset, to.cast(), N as u32 * 4) };
            if failed != 0 {
                return None;
            }
        }
        // SAFETY: either branch has written the whole array.
        Some(unsafe { words.assume_init() })
    }

    #[inline(always)]
    fn frame_len(&self) -> u32 {
        // SAFETY: the context is valid for the whole program; the verifier checks the access.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).gso_size }
    }

    #[inline(always)]
    fn vlan(&self) -> Option<u16> {
        // SAFETY: as above.
        let (present, tag) = unsafe { ((*self.raw).vlan_present, (*self.raw).vlan_tci) };
        if present == 0 { None } else { Some(tag as u16) }
    }

    #[inline(always)]
    fn to_this_host(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).ifindex }
    }
}

impl Copied for Skb {
    #[inline(always)]
    fn copy(&self, to: *mut c_void, len: u32) {
        // SAFETY: `to` has room for `len` bytes.
        unsafe { bpf_skb_load_bytes(self.raw.cast(), 0, to.cast(), len) };
    }
}
