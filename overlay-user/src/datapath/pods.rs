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

/// Tells the programs of a pod, and attaches the one that judges what the pod sends to the pod's
/// host end, as long as no agent does: what is forged is refused, all else is left to the kernel.
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

/// Until when the last sign of life of an agent whose programs are at work holds
/// (`CLOCK_MONOTONIC`, nanoseconds), if there was one.
#[must_use]
pub fn alive_until(root: &Path) -> Option<u64> {
    Maps::<V4>::heartbeat(&Pins::new(root)).ok()
}

/// Takes a pod out of the pinned maps, if there are any, so that no entry points at its device.
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

/// Takes the endpoint of a device that is gone out of the pinned maps, and removes the pins of its
/// links.
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
