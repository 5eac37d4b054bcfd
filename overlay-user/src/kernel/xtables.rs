//! Tables of iptables-legacy, read by socket options (`linux/netfilter_ipv4/ip_tables.h`).
//!
//! Only existing tables are read, because a request for another table would create that table.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::AsRawFd as _;

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Error;

/// The tables of this network namespace, by name.
const TABLES: &str = "/proc/thread-self/net/ip_tables_names";
/// Socket options.
const IPT_SO_GET_INFO: i32 = 64;
const IPT_SO_GET_ENTRIES: i32 = 65;
/// Length of a table's name in `struct ipt_getinfo`, and of the whole struct.
const NAME: usize = 32;
pub(super) const INFO: usize = 84;
/// Position of the size of the entries in `struct ipt_getinfo`.
pub(super) const SIZE: usize = 80;
/// Position of the first entry in `struct ipt_get_entries`.
const ENTRIES: usize = 40;

/// Layout of `struct ipt_entry`: the position of the next entry, and the positions of the counters
/// of packets and bytes.
pub(super) const NEXT_OFFSET: usize = 90;
const COUNTERS: Range<usize> = 96..112;

/// The present info of a table, by which added and removed rules are detected. A rule that is
/// replaced by one of the same size shows in the [`entries`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// `filter`, …
    pub table: String,
    /// `struct ipt_getinfo`.
    pub bytes: Vec<u8>,
}

/// The tables of `wanted` that are in this network namespace.
///
/// # Errors
/// The error from the socket.
pub fn infos(wanted: &[&str]) -> Result<Vec<Info>, Error> {
    let names = match fs::read_to_string(TABLES) {
        Ok(names) => names,
        // Without the module the file does not exist.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(Error::Refused {
                call: "read",
                object: TABLES.to_owned(),
                source,
            });
        }
    };
    wanted
        .iter()
        .filter(|table| names.lines().any(|name| name == **table))
        .map(|table| {
            Ok(Info {
                table: (*table).to_owned(),
                bytes: get(IPT_SO_GET_INFO, table, INFO, 0)?,
            })
        })
        .collect()
}

/// The rules of a table: one `struct ipt_entry` after the other.
///
/// # Errors
/// The error from the socket: `EAGAIN` where the table has changed since `info` was read.
pub fn entries(info: &Info) -> Result<Vec<u8>, Error> {
    let size = info.bytes.get(SIZE..SIZE + size_of::<u32>());
    let size = size.and_then(|bytes| bytes.try_into().ok());
    let size = size.map_or(0, u32::from_ne_bytes) as usize;
    let mut answer = get(IPT_SO_GET_ENTRIES, &info.table, ENTRIES + size, size)?;
    Ok(answer.split_off(ENTRIES.min(answer.len())))
}

/// A digest of the rules without their counters: two tables with the same digest have the same
/// rules, for as long as this process runs.
#[must_use]
pub fn digest(mut entries: Vec<u8>) -> u64 {
    let mut at = 0;
    while let Some(entry) = entries.get_mut(at..).filter(|rest| !rest.is_empty()) {
        let next = entry.get(NEXT_OFFSET..NEXT_OFFSET + size_of::<u16>());
        let next = next.and_then(|bytes| bytes.try_into().ok());
        let next = next.map_or(0, u16::from_ne_bytes);
        if let Some(counters) = entry.get_mut(COUNTERS) {
            counters.fill(0);
        }
        match next {
            // No entry is empty, so the remaining bytes are malformed; they are included unchanged.
            0 => break,
            next => at += usize::from(next),
        }
    }
    let mut hasher = DefaultHasher::new();
    entries.hash(&mut hasher);
    hasher.finish()
}

/// Reads a struct about a table: `length` bytes that begin with the table's name and, behind the
/// name, a size.
#[expect(
    unsafe_code,
    reason = "nix has no getsockopt(2) for options of iptables"
)]
pub(super) fn get(option: i32, table: &str, length: usize, size: usize) -> Result<Vec<u8>, Error> {
    let refused = |source| Error::Refused {
        call: "getsockopt IPT_SO_GET",
        object: table.to_owned(),
        source,
    };
    // Any socket of the family works.
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|errno| refused(errno.into()))?;
    let mut answer = vec![0; length];
    answer[..table.len()].copy_from_slice(table.as_bytes());
    let size = u32::try_from(size).unwrap_or(0);
    answer[NAME..NAME + size_of::<u32>()].copy_from_slice(&size.to_ne_bytes());
    let mut written = libc::socklen_t::try_from(length).unwrap_or(0);
    // SAFETY: the kernel reads and writes at most `written` bytes, which `answer` has, and receives
    // no other pointer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            answer.as_mut_ptr().cast(),
            &raw mut written,
        )
    };
    if result < 0 {
        return Err(refused(io::Error::last_os_error()));
    }
    Ok(answer)
}
