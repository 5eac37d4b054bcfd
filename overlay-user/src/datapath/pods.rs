//! What the CNI plugin needs of the fast path: forgetting a pod before its device goes.

use std::net::IpAddr;
use std::path::Path;

use overlay_common::V4;

use super::Error;
use super::family::UserFamily as _;
use super::maps::Maps;
use super::pins::Pins;

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
