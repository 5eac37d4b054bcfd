//! Frees the addresses of pods from before the machine's last boot when they are needed.
//!
//! Runtimes call DEL or GC for such pods, unless they have lost their own state; then every reboot
//! would take addresses away, until the node had none left.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::config::NetConf;
use super::{Error, veth};
use crate::ipam::{self, AddressBook, last_boot};
use crate::kernel::Kernel;

/// The addresses in `book` that no pod of this boot can have.
///
/// # Errors
///
/// What netlink says, or [`ipam::Error::Files`].
pub async fn find(book: &AddressBook, conf: &NetConf, host: &Kernel) -> Result<Vec<IpAddr>, Error> {
    let notes = veth::notes(host, conf.bridge()).await?;
    let addresses = notes.iter().flat_map(|note| note.addresses.iter());
    let living: BTreeSet<_> = addresses.copied().collect();
    Ok(book.abandoned(last_boot(), &living)?)
}

/// Calls `take`; where all addresses, or the wanted one, are taken, frees abandoned addresses and
/// calls `take` once more.
///
/// # Errors
///
/// The error of `take`, or as [`find`].
pub async fn or_free(
    book: &AddressBook,
    conf: &NetConf,
    host: &Kernel,
    take: impl Fn() -> Result<IpAddr, ipam::Error>,
) -> Result<IpAddr, Error> {
    let refusal = match take() {
        Err(error @ (ipam::Error::Exhausted { .. } | ipam::Error::Taken { .. })) => error,
        taken => return Ok(taken?),
    };
    let abandoned = find(book, conf, host).await?;
    if abandoned.is_empty() {
        return Err(refusal.into());
    }
    tracing::warn!(
        count = abandoned.len(),
        "freeing the addresses of pods from before the last boot, for which the runtime has not \
        called DEL"
    );
    abandoned.into_iter().try_for_each(|it| book.free(it))?;
    Ok(take()?)
}
