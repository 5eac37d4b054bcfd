//! Tables of iptables-legacy, asked for by socket options (`linux/netfilter_ipv4/ip_tables.h`).
//!
//! A table is asked for only if it is there: to ask for another one would make it.

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
/// Where the size of the entries stands in `struct ipt_getinfo`.
pub(super) const SIZE: usize = 80;
/// Where the entries begin in `struct ipt_get_entries`.
const ENTRIES: usize = 40;

/// Layout of `struct ipt_entry`: where the next entry is, and where the counters of packets and
/// bytes stand.
pub(super) const NEXT_OFFSET: usize = 90;
const COUNTERS: Range<usize> = 96..112;

/// A table as it is now: what tells whether rules came or went. A rule that is replaced by one of
/// the same size shows in the [`entries`] only.
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
/// What the socket says.
pub fn infos(wanted: &[&str]) -> Result<Vec<Info>, Error> {
    let names = match fs::read_to_string(TABLES) {
        Ok(names) => names,
        // Without the module there is no such file.
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

/// The rules of a table, as `struct ipt_entry` one after the other.
///
/// # Errors
/// What the socket says: `EAGAIN` where the table has changed since `info` was asked for.
pub fn entries(info: &Info) -> Result<Vec<u8>, Error> {
    let size = info.bytes.get(SIZE..SIZE + size_of::<u32>());
    let size = size.and_then(|bytes| bytes.try_into().ok());
    let size = size.map_or(0, u32::from_ne_bytes) as usize;
    let mut answer = get(IPT_SO_GET_ENTRIES, &info.table, ENTRIES + size, size)?;
    Ok(answer.split_off(ENTRIES.min(answer.len())))
}

/// What the rules are, whatever they have counted: two tables with the same digest have the same
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
            // No entry is empty: what follows makes no sense, and counts as it is.
            0 => break,
            next => at += usize::from(next),
        }
    }
    let mut hasher = DefaultHasher::new();
    entries.hash(&mut hasher);
    hasher.finish()
}

/// Asks for something about a table: a struct of `length` bytes that begins with its name and,
/// behind that, a size.
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
    // Any socket of the family will do.
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
    // SAFETY: the kernel reads and writes at most `written` bytes, which `answer` has, and knows no
    // other pointer.
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
