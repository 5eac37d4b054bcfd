//! The CNI plugin's use of the fast path's pins.

use std::net::IpAddr;
use std::path::Path;

use overlay_common::schema::POD_KERNEL_PATH;
use overlay_common::{Hook, V4};

use super::family::UserFamily as _;
use super::maps::Maps;
use super::pins::Pins;
use super::tables::LocalPod;
use super::{Error, programs};

/// Writes a pod's map entries, and attaches to the pod's host end the program that judges the pod's
/// packets, until an agent does so: forged packets are refused, all others are left to the kernel.
/// `false` where no programs are pinned.
///
/// # Errors
/// [`Error::Map`], [`Error::Attach`], [`Error::Link`] where the kernel refuses, [`Error::Family`]
/// for an address that no pod can have.
pub fn guard(root: &Path, interface: &str, pod: &LocalPod) -> Result<bool, Error> {
    let pins = Pins::new(root);
    if !pins.programs().exists() {
        return Ok(false);
    }
    let address = V4::from_ip(pod.address).ok_or(Error::Family(pod.address))?;
    let (endpoint, entry) = pod.entries::<V4>(address, POD_KERNEL_PATH);
    Maps::<V4>::remember_pod(&pins, endpoint, entry)?;
    programs::attach_offered(&pins, interface, pod.ifindex)
}

/// The end of validity of the last sign of life that an agent with attached programs gave
/// (`CLOCK_MONOTONIC`, nanoseconds); `None` without one.
#[must_use]
pub fn alive_until(root: &Path) -> Option<u64> {
    Maps::<V4>::heartbeat(&Pins::new(root)).ok()
}

/// Removes a pod from the pinned maps, if there are any, so that no entry points at its device.
///
/// # Errors
/// [`Error::Map`] where the kernel refuses, [`Error::Family`] for an address that no pod can have.
pub fn forget(root: &Path, address: IpAddr) -> Result<(), Error> {
    let pins = Pins::new(root);
    if !pins.exist() {
        return Ok(());
    }
    let address = V4::from_ip(address).ok_or(Error::Family(address))?;
    Maps::<V4>::forget_pod(&pins, address)
}

/// Removes the endpoint of a deleted device from the pinned maps, and the pins of its links.
///
/// # Errors
/// [`Error::Map`], [`Error::Pin`] where the kernel refuses.
pub fn forget_device(root: &Path, ifindex: u32) -> Result<(), Error> {
    let pins = Pins::new(root);
    if !pins.exist() {
        return Ok(());
    }
    Maps::<V4>::forget_device(&pins, ifindex)?;
    for hook in [Hook::PodIn, Hook::PodOut] {
        Pins::remove(&pins.link(hook, ifindex))?;
    }
    Ok(())
}
