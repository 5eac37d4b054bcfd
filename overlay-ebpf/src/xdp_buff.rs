//! A driver's receive buffer as a packet.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use overlay_common::decide::Tables;
use overlay_common::packet::{Packet, same_mac};

use crate::events::Copied;
use crate::maps::{Maps, Served};
use crate::skb::{FURTHEST, unproven};

/// A buffer that an XDP program sees.
pub struct XdpBuff {
    raw: *mut xdp_md,
}

impl XdpBuff {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self {
            raw: ctx.as_ptr().cast(),
        }
    }
}

impl Packet for XdpBuff {
    /// Reads only the first buffer of a packet in several buffers, because drivers put far more
    /// than the headers there.
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let offset = unproven(offset);
        // The verifier needs a proof that an offset taken from the packet is small.
        if offset > FURTHEST {
            return None;
        }
        // SAFETY: the two fields hold addresses; the verifier knows them as the packet's bounds.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        let from = start + offset as usize;
        if from + N * 4 > end {
            return None;
        }
        // The words are not zeroed first, because that would be a call to memset, which the
        // verifier refuses.
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        let to: *mut u32 = words.as_mut_ptr().cast();
        for i in 0..N {
            // SAFETY: within the bounds just checked; alignment as for `Skb`.
            unsafe { to.add(i).write(*((from + i * 4) as *const u32)) };
        }
        // SAFETY: the whole array has been written.
        Some(unsafe { words.assume_init() })
    }

    #[inline(always)]
    fn frame_len(&self) -> u32 {
        // SAFETY: the helper takes any buffer and cannot fail (Linux 5.18).
        unsafe { bpf_xdp_get_buff_len(self.raw) as u32 }
    }

    /// XDP sees no super-packets.
    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    /// Unknown, because a tag that the NIC has removed is not visible. The agent does not attach
    /// the program to NICs with VLANs.
    #[inline(always)]
    fn vlan(&self) -> Option<u16> {
        None
    }

    #[inline(always)]
    fn to_this_host(&self) -> bool {
        let Some([first, second]) = self.load::<2>(0) else {
            return false;
        };
        let [a, b, c, d] = first.to_ne_bytes();
        let [e, f, _, _] = second.to_ne_bytes();
        Tables::<Served>::config(&Maps)
            .is_some_and(|config| same_mac([a, b, c, d, e, f], config.underlay_mac))
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the whole program; the verifier checks the access.
        unsafe { (*self.raw).ingress_ifindex }
    }
}

impl Copied for XdpBuff {
    #[inline(always)]
    fn copy(&self, to: *mut c_void, len: u32) {
        // SAFETY: `to` has room for `len` bytes (Linux 5.18).
        unsafe { bpf_xdp_load_bytes(self.raw, 0, to.cast(), len) };
    }
}
