//! Telling of single packets, where the agent asks for it (`overlayd --log-refused`).

use core::ptr::addr_of_mut;

use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use overlay_common::decide::Tables;
use overlay_common::event::{EVENTS_LEN, Event};
use overlay_common::family::{Fragment, Ip};
use overlay_common::packet::{ETHERNET_LEN, Packet, TCP, UDP};
use overlay_common::schema::CONFIG_EVENTS;
use overlay_common::{Family, Hook, Verdict};

use crate::maps::{Mapped, Maps};

#[btf_map(name = "ov_events")]
static EVENTS: RingBuf<Event, { EVENTS_LEN as usize }> = RingBuf::new();
#[btf_map(name = "ov_events_lost")]
static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Tells of a packet and the verdict on it, where the agent asks for that; where the ring is full,
/// the event is counted as lost.
#[inline(always)]
pub fn tell<F: Mapped, P: Packet>(packet: &P, hook: Hook, verdict: Verdict) {
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
    // The verdict first: a verifier that has none to tell packets apart by walks through the rest
    // once for all of them.
    // SAFETY: the record is ours until it is submitted, and each field is written before that.
    unsafe {
        addr_of_mut!((*event).verdict).write(verdict as u32);
        addr_of_mut!((*event).hook).write(hook as u32);
        addr_of_mut!((*event).at_ns).write(bpf_ktime_get_ns());
        addr_of_mut!((*event).ifindex).write(packet.ifindex());
        addr_of_mut!((*event).len).write(packet.frame_len());
    }
    let ip = F::parse(packet, ETHERNET_LEN);
    let (source, destination, protocol) = ip.map_or(([0; 16], [0; 16], 0), |ip| {
        (F::mapped(ip.source), F::mapped(ip.destination), ip.protocol)
    });
    let (source_port, destination_port) = ports::<F, P>(packet, ip.as_ref()).unwrap_or((0, 0));
    // SAFETY: as above.
    unsafe {
        addr_of_mut!((*event).source).write(source);
        addr_of_mut!((*event).destination).write(destination);
        addr_of_mut!((*event).source_port).write(source_port);
        addr_of_mut!((*event).destination_port).write(destination_port);
        addr_of_mut!((*event).protocol).write(protocol.into());
    }
    entry.submit(0);
}

#[inline(always)]
fn ports<F: Family, P: Packet>(packet: &P, ip: Option<&Ip<F>>) -> Option<(u16, u16)> {
    let ip = ip.filter(|ip| ip.fragment != Fragment::Later)?;
    if ip.protocol != TCP && ip.protocol != UDP {
        return None;
    }
    let [word] = packet.load::<1>(ETHERNET_LEN + ip.header_len)?;
    let [s0, s1, d0, d1] = word.to_ne_bytes();
    Some((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])))
}
