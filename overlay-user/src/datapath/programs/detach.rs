//! Detaches our programs from their hooks, an earlier agent's and the CNI plugin's included.

use std::collections::BTreeMap;
use std::path::Path;

use aya::programs::Link as _;
use aya::programs::links::{FdLink, PinnedLink};
use overlay_common::Hook;

use super::super::Error;
use super::super::pins::Pins;
use super::{Mechanism, Programs, direction, link_failed, name, tc_hooks};

impl Programs {
    /// Detaches our programs wherever they are, and removes the links' pins.
    ///
    /// # Errors
    /// The first failure; the rest is done all the same.
    pub fn detach_all(pins: &Pins) -> Result<usize, Error> {
        let links = Self::detach_links(pins, |_| true);
        let filters = Self::detach_filters();
        Ok(links? + filters?)
    }

    /// Detaches the programs that are attached by links, on the hooks that `of` selects.
    ///
    /// # Errors
    /// The first failure; the rest is done all the same.
    pub fn detach_links(pins: &Pins, of: impl Fn(Hook) -> bool) -> Result<usize, Error> {
        let mut done = 0;
        let mut first_error = None;
        for (_, _, path) in pins
            .list_links()?
            .into_iter()
            .filter(|(hook, ..)| of(*hook))
        {
            match detach(&path) {
                Ok(()) => done += 1,
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(done), Err)
    }

    /// Detaches the tcx programs of another ABI version and removes their pins, because no agent
    /// keeps those maps up to date any more.
    ///
    /// # Errors
    /// [`Error::Pin`], [`Error::Link`].
    pub fn detach_other_versions(pins: &Pins) -> Result<usize, Error> {
        let mut done = 0;
        for version in pins.other_versions()? {
            for link in Pins::links_of(&version)? {
                detach(&link)?;
                done += 1;
            }
            Pins::remove_version(&version)?;
        }
        Ok(done)
    }

    /// Detaches the programs that are attached by clsact, on every device of this network
    /// namespace. The qdisc stays, because another program may use the qdisc; an empty one does
    /// nothing.
    ///
    /// # Errors
    /// The first failure; the rest is done all the same.
    pub fn detach_filters() -> Result<usize, Error> {
        let mut done = 0;
        let mut first_error = None;
        let interfaces = interfaces()?;
        // In the order of `Pins::list_links`.
        for hook in tc_hooks() {
            for interface in interfaces.values() {
                match detach_filter(hook, interface) {
                    Ok(there) => done += usize::from(there),
                    Err(error) => first_error = first_error.or(Some(error)),
                }
            }
        }
        first_error.map_or(Ok(done), Err)
    }

    /// Detaches the programs on devices that are not in use any more, and removes the pins of links
    /// whose devices do not exist.
    ///
    /// # Errors
    /// [`Error::Pin`], [`Error::Link`], [`Error::Filter`].
    pub fn forget_gone(&mut self, alive: impl Fn(Hook, u32) -> bool) -> Result<usize, Error> {
        let mut gone = 0;
        let is_gone = |site: &&(Hook, u32)| !alive(site.0, site.1);
        for (hook, ifindex) in self.own_filters.iter().filter(is_gone) {
            if let Some(interface) = interface_name(*ifindex)? {
                gone += usize::from(detach_filter(*hook, &interface)?);
            }
        }
        self.own_filters.retain(|site| alive(site.0, site.1));
        if self.mechanism == Mechanism::Clsact && !self.searched {
            // An earlier agent may have run over another underlay.
            for (ifindex, interface) in interfaces()? {
                for hook in tc_hooks().filter(|hook| !alive(*hook, ifindex)) {
                    gone += usize::from(detach_filter(hook, &interface)?);
                }
            }
            self.searched = true;
        }
        for (hook, ifindex, path) in self.pins.list_links()? {
            if !alive(hook, ifindex) {
                detach(&path)?;
                gone += 1;
            }
        }
        Ok(gone)
    }
}

/// Every device, by index.
fn interfaces() -> Result<BTreeMap<u32, String>, Error> {
    let devices = nix::net::if_::if_nameindex().map_err(|errno| Error::Filter {
        call: "list the devices of",
        interface: "this network namespace".to_owned(),
        message: errno.to_string(),
    })?;
    let name = |device: &nix::net::if_::Interface| device.name().to_string_lossy().into_owned();
    Ok(devices
        .iter()
        .map(|device| (device.index(), name(device)))
        .collect())
}

fn interface_name(ifindex: u32) -> Result<Option<String>, Error> {
    Ok(interfaces()?.remove(&ifindex))
}

/// Detaches the filter of a hook; returns whether there was one.
fn detach_filter(hook: Hook, interface: &str) -> Result<bool, Error> {
    use aya::programs::TcError;
    match aya::programs::tc::qdisc_detach_program(interface, direction(hook), name(hook)) {
        Ok(()) => Ok(true),
        // No filter of that name, or no device any more.
        Err(TcError::IoError(_)) => Ok(false),
        Err(error) => Err(Error::Filter {
            call: "detach filter from",
            interface: interface.to_owned(),
            message: super::super::short(&error),
        }),
    }
}

/// Detaches the program of a pinned link and removes the pin.
fn detach(path: &Path) -> Result<(), Error> {
    // A link whose device is gone is detached already.
    if let Ok(link) = PinnedLink::from_pin(path)
        && let Err(error) = FdLink::from(link).detach()
    {
        return Err(link_failed("detach", path, &error));
    }
    Pins::remove(path)
}
