//! All entries of a hash map in a few system calls, where aya takes two for each entry.

use std::io;

use aya::Pod as Plain;
use aya::maps::MapData;
use nix::libc;

use crate::datapath::syscall::Batches;

/// Entries that one call has room for at first. Room for all entries of a large map would cost more
/// than the calls, because the kernel would have to clear so many pages.
const ROOM: usize = 512;

/// Shows every entry to `visit`, in no order.
///
/// # Errors
/// `EINVAL` before Linux 5.6; `EPERM` without the privileges for the map. Some entries have been
/// visited then.
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
            // The kernel does not split a bucket: more room, and again from where it stands.
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
