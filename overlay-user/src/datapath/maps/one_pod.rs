//! The entries of one pod, which the CNI plugin writes and removes. Only the maps that hold them
//! are opened: an agent of another build may have pinned the others.

use aya::Pod as Plain;
use aya::maps::HashMap;
use overlay_common::schema::{Endpoint, Heartbeat, Pod};

use super::super::Error;
use super::super::family::UserFamily;
use super::super::pins::Pins;
use super::{DEVICES, ENDPOINTS, HEARTBEAT, Maps, PODS, devices, failed, missing_is_none, open};

impl<F: UserFamily> Maps<F>
where
    F::Addr: Plain,
{
    /// Tells the programs of a new pod, and forgets a former one behind a device with the same
    /// index.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn remember_pod(pins: &Pins, endpoint: Endpoint<F>, pod: Pod) -> Result<(), Error> {
        let mut endpoints: HashMap<_, u32, Endpoint<F>> = open(pins, ENDPOINTS)?;
        let done = endpoints.insert(pod.ifindex, endpoint, 0);
        done.map_err(failed("update", ENDPOINTS))?;
        let mut pods: HashMap<_, F::Addr, Pod> = open(pins, PODS)?;
        let done = pods.insert(endpoint.address, pod, 0);
        done.map_err(failed("update", PODS))?;
        // Last, because the former pod's entry would lead to the device as well.
        devices::forget_former(&mut pods, |address, former| {
            *address != endpoint.address && former.ifindex == pod.ifindex
        })?;
        devices::add(&mut open(pins, DEVICES)?, pod.ifindex).map(drop)
    }

    /// Takes a pod out of the maps, its endpoint with it.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn forget_pod(pins: &Pins, address: F::Addr) -> Result<(), Error> {
        let mut pods: HashMap<_, F::Addr, Pod> = open(pins, PODS)?;
        let Some(pod) = missing_is_none(pods.get(&address, 0)).map_err(failed("read", PODS))?
        else {
            return Ok(());
        };
        missing_is_none(pods.remove(&address)).map_err(failed("delete from", PODS))?;
        Self::forget_device(pins, pod.ifindex)
    }

    /// Takes the endpoint of a device out of the maps.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn forget_device(pins: &Pins, ifindex: u32) -> Result<(), Error> {
        let mut endpoints: HashMap<_, u32, Endpoint<F>> = open(pins, ENDPOINTS)?;
        let gone = missing_is_none(endpoints.remove(&ifindex));
        gone.map(drop).map_err(failed("delete from", ENDPOINTS))
    }

    /// Until when the last sign of life of an agent holds; see [`Heartbeat`].
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn heartbeat(pins: &Pins) -> Result<u64, Error> {
        let heartbeat: aya::maps::Array<_, Heartbeat> = open(pins, HEARTBEAT)?;
        let read = heartbeat.get(&0, 0).map_err(failed("read", HEARTBEAT))?;
        Ok(read.next_hops_until_ns)
    }
}
