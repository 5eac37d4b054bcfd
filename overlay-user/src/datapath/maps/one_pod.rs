//! The entries of one pod, which the CNI plugin writes and removes. Only the maps that hold them
//! are opened: an agent of another build may have pinned the others.

use aya::maps::HashMap;
use overlay_common::schema::{Endpoint, Heartbeat, PodEntry};

use super::super::Error;
use super::super::family::UserFamily;
use super::super::pins::Pins;
use super::{HEARTBEAT, Maps, devices, failed, missing_is_none, open};

impl<F: UserFamily> Maps<F> {
    /// Writes the entries of a new pod, and removes those of a former one behind a device with the
    /// same index.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn remember_pod(pins: &Pins, endpoint: Endpoint<F>, pod: PodEntry) -> Result<(), Error> {
        let mut endpoints: HashMap<_, u32, Endpoint<F>> = open(pins, F::MAPS.endpoints)?;
        let done = endpoints.insert(pod.ifindex, endpoint, 0);
        done.map_err(failed("update", F::MAPS.endpoints))?;
        let mut pods: HashMap<_, F::Addr, PodEntry> = open(pins, F::MAPS.pods)?;
        for address in endpoint.addresses {
            let done = pods.insert(address, pod, 0);
            done.map_err(failed("update", F::MAPS.pods))?;
        }
        // Last, because the former pod's entry would lead to the device as well.
        devices::forget_former::<F>(&mut pods, |address, former| {
            !endpoint.has(*address) && former.ifindex == pod.ifindex
        })?;
        devices::add::<F>(&mut open(pins, F::MAPS.devices)?, pod.ifindex).map(drop)
    }

    /// Removes a pod and its endpoint from the maps.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn forget_pod(pins: &Pins, address: F::Addr) -> Result<(), Error> {
        let mut pods: HashMap<_, F::Addr, PodEntry> = open(pins, F::MAPS.pods)?;
        let Some(pod) =
            missing_is_none(pods.get(&address, 0)).map_err(failed("read", F::MAPS.pods))?
        else {
            return Ok(());
        };
        missing_is_none(pods.remove(&address)).map_err(failed("delete from", F::MAPS.pods))?;
        Self::forget_device(pins, pod.ifindex)
    }

    /// Removes the endpoint of a device from the maps.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn forget_device(pins: &Pins, ifindex: u32) -> Result<(), Error> {
        let mut endpoints: HashMap<_, u32, Endpoint<F>> = open(pins, F::MAPS.endpoints)?;
        let gone = missing_is_none(endpoints.remove(&ifindex));
        gone.map(drop)
            .map_err(failed("delete from", F::MAPS.endpoints))
    }

    /// The end of validity of an agent's last sign of life; see [`Heartbeat`].
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn heartbeat(pins: &Pins) -> Result<u64, Error> {
        let heartbeat: aya::maps::Array<_, Heartbeat> = open(pins, HEARTBEAT)?;
        let read = heartbeat.get(&0, 0).map_err(failed("read", HEARTBEAT))?;
        Ok(read.next_hops_until_ns)
    }
}
