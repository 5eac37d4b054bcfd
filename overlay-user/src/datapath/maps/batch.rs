//! All entries of a hash map in a few system calls (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), where aya
//! takes two for each entry.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Pod as Plain;
use aya::maps::MapData;
use nix::libc;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const MAP_LOOKUP_BATCH: libc::c_int = 24;

/// The member `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    /// Pointers to where the last batch ended and where this one ends: four bytes each for a hash
    /// map.
    in_batch: u64,
    out_batch: u64,
    /// Pointers to room for `count` keys and values.
    keys: u64,
    values: u64,
    /// Room for so many before, so many found after.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<Batch>() == 56);

/// Entries that one call has room for at first. Room for all entries of a large map would cost more
/// than the calls, because the kernel would have to clear so many pages.
const ROOM: usize = 512;

/// Shows every entry to `visit`, in no order.
///
/// # Errors
/// `EINVAL` before Linux 5.6; `EPERM` without the privileges for the map. Some entries have been
/// visited then.
#[expect(unsafe_code, reason = "aya has no BPF_MAP_LOOKUP_BATCH")]
pub(super) fn for_each<K: Plain, V: Plain>(
    map: &MapData,
    mut visit: impl FnMut(K, V),
) -> io::Result<()> {
    let info = map.info().map_err(io::Error::other)?;
    let fd = u32::try_from(map.fd().as_fd().as_raw_fd()).map_err(io::Error::other)?;
    if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<V>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let all = info.max_entries() as usize;
    let mut room = all.min(ROOM);
    let mut keys: Vec<K> = Vec::with_capacity(room);
    let mut values: Vec<V> = Vec::with_capacity(room);
    let (mut cursor, mut next) = (0_u32, 0_u32);
    let mut is_first = true;
    loop {
        let mut batch = Batch {
            in_batch: if is_first {
                0
            } else {
                &raw const cursor as u64
            },
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(room).map_err(io::Error::other)?,
            map_fd: fd,
            ..Batch::default()
        };
        // SAFETY: the kernel writes `next`, `batch.count`, and at most `count` keys and values of
        // the sizes that were compared above, for which there is room.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                MAP_LOOKUP_BATCH,
                &raw mut batch,
                size_of::<Batch>(),
            )
        };
        let error = (result < 0).then(io::Error::last_os_error);
        let is_last = match error {
            None => false,
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // The kernel does not split a bucket: more room, and again from where it stands.
            Some(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < all => {
                room = (room * 2).min(all);
                keys = Vec::with_capacity(room);
                values = Vec::with_capacity(room);
                continue;
            }
            Some(error) => return Err(error),
        };
        let found = (batch.count as usize).min(room);
        // SAFETY: the kernel has written so many of each, and any bytes are a value of a `Pod`
        // type.
        unsafe {
            keys.set_len(found);
            values.set_len(found);
        }
        for (key, value) in keys.iter().zip(&values) {
            visit(*key, *value);
        }
        if is_last {
            return Ok(());
        }
        (cursor, is_first) = (next, false);
    }
}
