//! Reports on single packets, if the agent has enabled them (`overlayd --log-refused`).

use core::ffi::c_void;
use core::ptr::addr_of_mut;

use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use overlay_common::decide::Tables;
use overlay_common::event::{EVENTS_LEN, Event, HEAD_LEN};
use overlay_common::packet::{ETHERNET_LEN, Packet};
use overlay_common::schema::CONFIG_EVENTS;
use overlay_common::{Hook, Verdict};

use crate::maps::{Mapped, Maps};

#[btf_map(name = "ov_events")]
static EVENTS: RingBuf<Event, { EVENTS_LEN as usize }> = RingBuf::new();
#[btf_map(name = "ov_events_lost")]
static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// A packet whose first bytes can be copied.
pub trait Copied: Packet {
    /// Copies the first `len` bytes to `to`, which has room for [`HEAD_LEN`]; zeros where the
    /// packet has fewer.
    fn copy(&self, to: *mut c_void, len: u32);
}

/// Reports a packet and its verdict, if the agent has enabled reports; where the ring is full, the
/// event is counted as lost.
#[inline(always)]
pub fn tell<F: Mapped, P: Copied>(packet: &P, hook: Hook, verdict: Verdict) {
    let config = Tables::<F>::config(&Maps);
    if config.is_none_or(|config| config.flags & CONFIG_EVENTS == 0) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        if let Some(lost) = LOST.get_ptr_mut(0) {
            // SAFETY: the pointer is to this CPU's own copy; a count that another hook's program on
            // this CPU interrupts is off by one at most.
            unsafe { *lost += 1 };
        }
        return;
    };
    let event = entry.as_mut_ptr();
    // The verdict is written first, because a verifier that cannot distinguish packets by their
    // verdict walks through the rest once for all of them.
    // SAFETY: the record is ours until it is submitted, and each field is written before that.
    unsafe {
        addr_of_mut!((*event).verdict).write(verdict as u32);
        addr_of_mut!((*event).hook).write(hook as u32);
        addr_of_mut!((*event).at_ns).write(bpf_ktime_get_ns());
        addr_of_mut!((*event).ifindex).write(packet.ifindex());
        addr_of_mut!((*event).len).write(packet.frame_len());
    }
    // SAFETY: as above; the helpers write exactly the given number of bytes, or zeros.
    let head = unsafe { addr_of_mut!((*event).head).cast() };
    let len = packet.frame_len().min(HEAD_LEN as u32);
    // Every frame has a length above zero, but the verifier of Linux 6.1 needs a proof that the
    // number of bytes is not zero, and deduces nothing from a comparison with zero.
    if len >= ETHERNET_LEN {
        packet.copy(head, len);
    }
    entry.submit(0);
}
