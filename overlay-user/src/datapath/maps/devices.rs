//! The devices of this node's pods, and the VXLAN device. The kernel itself removes a device from
//! the map when the device is deleted. Therefore an entry in `ov_pods4` leads nowhere if its device
//! was deleted, even where another device has the same index by now.

use std::collections::BTreeSet;

use aya::maps::xdp::{DevMapHash, XdpMapError};
use aya::maps::{HashMap, MapData, MapError};
use nix::errno::Errno;
use overlay_common::schema::PodEntry;
use overlay_common::snapshot::Snapshot;

use super::super::Error;
use super::super::family::UserFamily;
use super::{failed, missing_is_none};

/// The indexes of the devices that are in the map.
pub(super) fn dump<F: UserFamily>(devices: &DevMapHash<MapData>) -> Result<BTreeSet<u32>, Error> {
    devices
        .keys()
        .collect::<Result<_, _>>()
        .map_err(failed("dump", F::MAPS.devices))
}

/// Adds the devices that `desired` names, of pods and of VXLAN; returns how many are new. Entries
/// in `pods` of a former device with the same index are removed first.
pub(super) fn fill<F: UserFamily>(
    devices: &mut DevMapHash<MapData>,
    pods: &mut HashMap<MapData, F::Addr, PodEntry>,
    desired: &Snapshot<F>,
) -> Result<usize, Error> {
    let known = dump::<F>(devices)?;
    let vtep = desired.config.map(|config| config.vtep_ifindex);
    let vtep = vtep.filter(|ifindex| *ifindex != 0);
    let of_pods = desired.pods.values().map(|pod| pod.ifindex);
    let wanted: BTreeSet<u32> = of_pods.chain(vtep).collect();
    let new: BTreeSet<u32> = wanted.difference(&known).copied().collect();
    if new.is_empty() {
        return Ok(0);
    }
    let is_wanted = |address: &F::Addr, pod: &PodEntry| desired.pods.get(address) == Some(pod);
    forget_former::<F>(pods, |address, pod| {
        new.contains(&pod.ifindex) && !is_wanted(address, pod)
    })?;
    let mut added = 0;
    for ifindex in new {
        added += usize::from(add::<F>(devices, ifindex)?);
    }
    Ok(added)
}

/// Removes the entries of former pods from a map.
pub(super) fn forget_former<F: UserFamily>(
    pods: &mut HashMap<MapData, F::Addr, PodEntry>,
    is_former: impl Fn(&F::Addr, &PodEntry) -> bool,
) -> Result<(), Error> {
    for (address, pod) in super::dump(pods, F::MAPS.pods)? {
        if is_former(&address, &pod) {
            missing_is_none(pods.remove(&address)).map_err(failed("delete from", F::MAPS.pods))?;
        }
    }
    Ok(())
}

/// Adds a device; `false` where the device no longer exists.
pub(super) fn add<F: UserFamily>(
    devices: &mut DevMapHash<MapData>,
    ifindex: u32,
) -> Result<bool, Error> {
    match devices.insert(ifindex, ifindex, None, 0) {
        Ok(()) => Ok(true),
        Err(XdpMapError::MapError(error)) if is_gone(&error) => Ok(false),
        Err(XdpMapError::MapError(error)) => Err(failed("update", F::MAPS.devices)(error)),
        // aya returns this error for a program in the entry, and no entry here has one.
        Err(XdpMapError::ChainedProgramNotSupported) => Ok(false),
    }
}

/// Whether the kernel refused an index because no device has it (`__dev_map_alloc_node()`).
fn is_gone(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error)
        if error.io_error.raw_os_error() == Some(Errno::EINVAL as i32))
}
