//! Addresses of pods from before the machine's last boot.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use super::{AddressBook, Error};

/// The time of this machine's last boot. Moves with the clock when somebody sets the clock.
#[must_use]
pub fn last_boot() -> SystemTime {
    let since = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    // A kernel without this clock is older than any that runs the overlay.
    let since = since.unwrap_or_default();
    SystemTime::now()
        .checked_sub(since)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

impl AddressBook {
    /// The addresses that were given out before `boot`, without those of `living` pods. No pod
    /// outlives the machine's boot, but a runtime that has lost its own state does not call DEL
    /// for the pods from before. `living` is needed because a node without a battery for its clock
    /// may have made pods before it set the clock.
    ///
    /// # Errors
    ///
    /// As [`AddressBook::entries`].
    pub fn abandoned(
        &self,
        boot: SystemTime,
        living: &BTreeSet<IpAddr>,
    ) -> Result<Vec<IpAddr>, Error> {
        let mut addresses: Vec<_> = self.entries()?.into_iter().map(|(it, _)| it).collect();
        addresses.retain(|address| {
            let file = fs::metadata(self.dir.join(address.to_string()));
            let written = file.and_then(|file| file.modified());
            written.is_ok_and(|written| written < boot) && !living.contains(address)
        });
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::deadline::Deadline;

    #[test]
    fn only_files_from_before_the_boot_without_a_living_pod_are_abandoned() {
        let dir = tempfile::tempdir().expect("a directory");
        let book = AddressBook::lock(dir.path(), Deadline::after(Duration::from_secs(1)));
        let book = book.expect("a lock");
        let boot = last_boot();
        assert!(boot < SystemTime::now());
        let write = |name: &str, before: bool| {
            fs::write(dir.path().join(name), "c\r\neth0").expect("written");
            let file = File::options().write(true).open(dir.path().join(name));
            let moment = if before {
                boot - Duration::from_secs(1)
            } else {
                SystemTime::now()
            };
            file.and_then(|file| file.set_modified(moment))
                .expect("the time of writing");
        };
        for (name, before) in [
            ("10.244.1.2", true),
            ("10.244.1.3", true),
            ("10.244.1.4", false),
            ("last_reserved_ip.0", true),
        ] {
            write(name, before);
        }
        let living = BTreeSet::from([IpAddr::from([10, 244, 1, 3])]);
        let abandoned = book.abandoned(boot, &living).expect("a list");
        assert_eq!(abandoned, [IpAddr::from([10, 244, 1, 2])]);
    }
}
