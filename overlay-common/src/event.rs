//! What the programs tell of single packets, where the agent asks for it.

use bytemuck::{Pod as Plain, Zeroable};

/// Bytes that `ov_events` holds, headers of records included: a power of two, and whole pages.
pub const EVENTS_LEN: u32 = 128 * 1024;

/// A packet whose visit to a hook has ended: a record of `ov_events` (`BPF_MAP_TYPE_RINGBUF`, Linux
/// 5.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Event {
    /// When (`CLOCK_MONOTONIC`, nanoseconds).
    pub at_ns: u64,
    /// Sender of the outermost IP header; one of IPv4 as IPv6 writes it (RFC 4291, section
    /// 2.5.5.2), zeros where there is no such header.
    pub source: [u8; 16],
    /// Receiver, likewise.
    pub destination: [u8; 16],
    /// The number of the [`Hook`](crate::Hook).
    pub hook: u32,
    /// The number of the [`Verdict`](crate::Verdict).
    pub verdict: u32,
    /// The interface that the program sits on.
    pub ifindex: u32,
    /// Bytes from the Ethernet header on; of a super-packet, of the whole of it.
    pub len: u32,
    /// Sender's port of TCP and UDP, else zero.
    pub source_port: u16,
    /// Receiver's port, likewise.
    pub destination_port: u16,
    /// The protocol above IP (`IPPROTO_*`); zero where there is no IP header.
    pub protocol: u32,
}

const _: () = assert!(size_of::<Event>() == 64);

impl Event {
    /// Reads a record; `None` where it is another build's, of another length.
    #[must_use]
    pub fn read(record: &[u8]) -> Option<Self> {
        bytemuck::try_pod_read_unaligned(record).ok()
    }
}
