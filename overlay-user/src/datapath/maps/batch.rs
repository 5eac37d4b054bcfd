//! Reads all entries of a hash map with a few system calls, where aya makes two for each entry.

use std::io;

use aya::Pod as Plain;
use aya::maps::MapData;
use nix::libc;

use crate::datapath::syscall::Batches;

/// Number of entries in the first call. Room for all entries of a large map would cost more than
/// the calls, because the kernel would have to clear many pages.
const ROOM: usize = 512;

/// Passes every entry to `visit`, in no order.
///
/// # Errors
/// `EINVAL` before Linux 5.6; `EPERM` without the privileges for the map. Some entries may have
/// been visited before the error.
pub(super) fn for_each<K: Plain, V: Plain>(
    map: &MapData,
    mut visit: impl FnMut(K, V),
) -> io::Result<()> {
    let mut batches = Batches::new(map)?;
    let all = batches.most();
    let mut room = all.min(ROOM);
    loop {
        let batch = match batches.next(room) {
            Ok(batch) => batch,
            // The kernel does not split a bucket. Therefore the same position is read again with
            // more room.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < all => {
                room = (room * 2).min(all);
                continue;
            }
            Err(error) => return Err(error),
        };
        for (key, value) in batch.keys.iter().zip(&batch.values) {
            visit(*key, *value);
        }
        if batch.is_last {
            return Ok(());
        }
    }
}
