//! Records of single packets, which the programs write if the agent has enabled them.

use bytemuck::{Pod as Plain, Zeroable};

/// Size of `ov_events` in bytes, headers of records included: a power of two, and whole pages,
/// which have up to 64 KiB.
pub const EVENTS_LEN: u32 = 128 * 1024;
const _: () = assert!(EVENTS_LEN.is_power_of_two() && EVENTS_LEN.is_multiple_of(64 * 1024));

/// A packet whose visit to a hook has ended: a record of `ov_events` (`BPF_MAP_TYPE_RINGBUF`, Linux
/// 5.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Event {
    /// Time (`CLOCK_MONOTONIC`, nanoseconds).
    pub at_ns: u64,
    /// The number of the [`Hook`](crate::Hook).
    pub hook: u32,
    /// The number of the [`Verdict`](crate::Verdict).
    pub verdict: u32,
    /// The interface that the program is attached to.
    pub ifindex: u32,
    /// Length in bytes from the Ethernet header on; of a super-packet, the whole length.
    pub len: u32,
    /// The first bytes of the frame; see [`Event::head`]. The agent reads addresses and ports from
    /// them, because code for that in the programs would be repeated in each program.
    pub head: [u8; HEAD_LEN],
}

/// Number of bytes of a frame that an [`Event`] has room for: Ethernet and IPv6 header twice, and
/// the outer UDP and VXLAN headers between them, without extensions.
pub const HEAD_LEN: usize = 128;

const _: () = assert!(size_of::<Event>() == 24 + HEAD_LEN);

impl Event {
    /// Reads a record; `None` where the record has another length, because the programs of another
    /// build may have written it.
    #[must_use]
    pub fn read(record: &[u8]) -> Option<Self> {
        bytemuck::try_pod_read_unaligned(record).ok()
    }

    /// The first bytes of the frame: as many as the frame has and the record has room for.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        let len = usize::try_from(self.len).unwrap_or(HEAD_LEN);
        &self.head[..len.min(HEAD_LEN)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_their_length() {
        let event = Event {
            at_ns: 1,
            hook: 2,
            verdict: 3,
            ifindex: 4,
            len: 60,
            head: [5; HEAD_LEN],
        };
        let record = bytemuck::bytes_of(&event);
        assert_eq!(Event::read(record), Some(event));
        assert_eq!(Event::read(&record[1..]), None);
        assert_eq!(event.head(), [5; 60]);
        let long = Event { len: 1500, ..event };
        assert_eq!(long.head(), event.head);
    }
}
