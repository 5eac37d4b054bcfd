//! The pinned maps, typed.

use std::collections::BTreeMap;
use std::time::Duration;

use aya::Pod as Plain;
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use nix::time::{ClockId, clock_gettime};
use overlay_common::schema::{
    CONFIG_ACTIVE, Config, Counter, Endpoint, Flow, FlowKey, FlowNews, Heartbeat, POD_KERNEL_PATH,
    PeerEntry, PodEntry, Vtep,
};
use overlay_common::{Family, V4};

use super::Error;
use super::family::UserFamily;
use super::pins::Pins;
use overlay_common::snapshot::Snapshot;

mod batch;
mod counters;
mod devices;
mod flows;
mod mirrored;
mod one_pod;
mod steps;

use mirrored::Mirrored;
pub use steps::JUDGING;
use steps::steps;

/// The map of the agent's signs of life.
pub const HEARTBEAT: &str = "ov_heartbeat";
/// The map of counters.
pub const COUNTERS: &str = "ov_counters";
/// The ring of [`Event`](overlay_common::event::Event)s.
pub const EVENTS: &str = "ov_events";
/// The map of how many events found the ring full.
pub const EVENTS_LOST: &str = "ov_events_lost";

/// The names of every map of the programs for pods of this family.
pub fn all<F: UserFamily>() -> impl Iterator<Item = &'static str> + Clone {
    let shared = [HEARTBEAT, COUNTERS, EVENTS, EVENTS_LOST];
    F::MAPS.all().into_iter().chain(shared)
}

/// What the maps of peers and VTEPs hold.
pub type KnownPeers<F> = (
    BTreeMap<<F as Family>::Addr, PeerEntry<F>>,
    BTreeMap<<F as Family>::Addr, Vtep>,
);

/// The maps of one family's data path.
pub struct Maps<F: UserFamily> {
    config: Array<MapData, Config<F>>,
    endpoints: HashMap<MapData, u32, Endpoint<F>>,
    pods: HashMap<MapData, F::Addr, PodEntry>,
    devices: DevMapHash<MapData>,
    peers: Mirrored<F::Addr, PeerEntry<F>>,
    vteps: Mirrored<F::Addr, Vtep>,
    flows: HashMap<MapData, FlowKey<F>, Flow>,
    flow_news: Array<MapData, FlowNews>,
    heartbeat: Array<MapData, Heartbeat>,
    counters: PerCpuArray<MapData, Counter>,
}

impl<F: UserFamily> Maps<F> {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// [`Error::Map`] where a pin is missing or holds something else.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            config: open(pins, F::MAPS.config)?,
            endpoints: open(pins, F::MAPS.endpoints)?,
            pods: open(pins, F::MAPS.pods)?,
            devices: open(pins, F::MAPS.devices)?,
            peers: Mirrored::open(pins, F::MAPS.peers)?,
            vteps: Mirrored::open(pins, F::MAPS.vteps)?,
            flows: open(pins, F::MAPS.flows)?,
            flow_news: open(pins, F::MAPS.flow_news)?,
            heartbeat: open(pins, HEARTBEAT)?,
            counters: open(pins, COUNTERS)?,
        })
    }

    /// This node's configuration; `None` before an agent wrote one.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn config(&self) -> Result<Option<Config<F>>, Error> {
        let config = self.stored_config()?;
        Ok((config.abi != 0).then_some(config))
    }

    fn stored_config(&self) -> Result<Config<F>, Error> {
        let config = self.config.get(&0, 0);
        config.map_err(failed("read", F::MAPS.config))
    }

    /// Writes the configuration: all of it while the programs leave everything to the kernel, then
    /// the flags, so that no packet meets half of it.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn set_config(&mut self, config: &Config<F>) -> Result<(), Error> {
        let current = self.stored_config()?;
        if current == *config {
            return Ok(());
        }
        for step in steps(&current, config) {
            self.config
                .set(0, step, 0)
                .map_err(failed("update", F::MAPS.config))?;
        }
        Ok(())
    }

    /// Has the programs leave every packet to the kernel. Returns the configuration, if it changed.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn deactivate(&mut self) -> Result<Option<Config<F>>, Error> {
        let active = self.config()?;
        let Some(config) = active.filter(|config| config.flags & CONFIG_ACTIVE != 0) else {
            return Ok(None);
        };
        let config = Config {
            flags: config.flags & !CONFIG_ACTIVE,
            ..config
        };
        self.set_config(&config)?;
        Ok(Some(config))
    }

    /// Removes the entries that `tables` does not have any more. To be called before the kernel's
    /// own state is removed.
    ///
    /// # Errors
    /// [`Error::Map`]; what was done before stays.
    pub fn retire(&mut self, tables: &Snapshot<F>) -> Result<usize, Error> {
        Ok(retire(&mut self.pods, F::MAPS.pods, &tables.pods)?
            + retire(&mut self.endpoints, F::MAPS.endpoints, &tables.endpoints)?
            + self.peers.retire(&tables.peers)?
            + self.vteps.retire(&tables.vteps)?)
    }

    /// Adds the VTEPs that are new in `tables`; their subnets are written later. True if a subnet
    /// is new or has moved to another VTEP: until its entry is written, packets from that subnet
    /// look forged.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn admit(&mut self, tables: &Snapshot<F>) -> Result<bool, Error> {
        self.vteps.fill(&tables.vteps)?;
        let known = self.peers.entries()?;
        let is_known = |(subnet, peer): (&F::Addr, &PeerEntry<F>)| {
            known.get(subnet).is_some_and(|old| old.vtep == peer.vtep)
        };
        Ok(!tables.peers.iter().all(is_known))
    }

    /// Writes the entries that are new or different in `tables`. To be called after the kernel's
    /// own state is complete.
    ///
    /// # Errors
    /// [`Error::Map`]; what was done before stays.
    pub fn fill(&mut self, tables: &Snapshot<F>) -> Result<usize, Error> {
        Ok(self.fill_peers(tables)? + self.fill_pods(tables)?)
    }

    /// Writes the entries of other nodes that are new or different in `tables`.
    ///
    /// # Errors
    /// [`Error::Map`]; what was done before stays.
    pub fn fill_peers(&mut self, tables: &Snapshot<F>) -> Result<usize, Error> {
        Ok(self.vteps.fill(&tables.vteps)? + self.peers.fill(&tables.peers)?)
    }

    /// Writes the entries of pods that are new or different in `tables`.
    ///
    /// # Errors
    /// [`Error::Map`]; what was done before stays.
    pub fn fill_pods(&mut self, tables: &Snapshot<F>) -> Result<usize, Error> {
        Ok(
            fill(&mut self.endpoints, F::MAPS.endpoints, &tables.endpoints)?
                + fill(&mut self.pods, F::MAPS.pods, &tables.pods)?
                + devices::fill(&mut self.devices, &mut self.pods, tables)?,
        )
    }

    /// Changes the peers that `change` has another entry for; returns how many.
    ///
    /// # Errors
    /// [`Error::Map`]; what was done before stays.
    pub fn update_peers(
        &mut self,
        change: impl Fn(&PeerEntry<F>) -> Option<PeerEntry<F>>,
    ) -> Result<usize, Error> {
        self.peers.update(|_, peer| change(peer))
    }

    /// Reads the maps of the other nodes in the kernel; true if another process has written them.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn look_at_peers(&mut self) -> Result<bool, Error> {
        Ok(self.peers.look()? | self.vteps.look()?)
    }

    /// What the maps hold that depends on the list of leases, as far as known.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn known_peers(&mut self) -> Result<KnownPeers<F>, Error> {
        Ok((self.peers.entries()?.clone(), self.vteps.entries()?.clone()))
    }

    /// The entries of this node's pods. Entries whose devices do not exist any more are left out.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn known_pods(&self) -> Result<Snapshot<F>, Error> {
        let devices = devices::dump::<F>(&self.devices)?;
        let mut pods = dump(&self.pods, F::MAPS.pods)?;
        pods.retain(|_, pod| devices.contains(&pod.ifindex));
        let mut config = self.config()?;
        if let Some(config) = &mut config
            && !devices.contains(&config.vtep_ifindex)
        {
            config.vtep_ifindex = 0;
        }
        Ok(Snapshot {
            config,
            endpoints: dump(&self.endpoints, F::MAPS.endpoints)?,
            pods,
            ..Snapshot::default()
        })
    }

    /// Leaves the pod on a device to the kernel, both ways. The pod's entries stay, because packets
    /// of an unknown pod look translated where they leave the stack.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn hold_device(&mut self, ifindex: u32) -> Result<(), Error> {
        // Only what is there: the plugin may be taking the pod out at this moment.
        const EXISTING: u64 = 2; // BPF_EXIST
        let held = missing_is_none(self.endpoints.get(&ifindex, 0))
            .map_err(failed("read", F::MAPS.endpoints))?;
        if let Some(mut endpoint) = held {
            endpoint.flags |= POD_KERNEL_PATH;
            missing_is_none(self.endpoints.insert(ifindex, endpoint, EXISTING))
                .map_err(failed("update", F::MAPS.endpoints))?;
        }
        for (address, mut pod) in dump(&self.pods, F::MAPS.pods)? {
            if pod.ifindex == ifindex {
                pod.flags |= POD_KERNEL_PATH;
                missing_is_none(self.pods.insert(address, pod, EXISTING))
                    .map_err(failed("update", F::MAPS.pods))?;
            }
        }
        Ok(())
    }

    /// Sets until when the programs may trust the agent's lists of leases and next hops.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn set_heartbeat(&mut self, heartbeat: Heartbeat) -> Result<(), Error> {
        self.heartbeat
            .set(0, heartbeat, 0)
            .map_err(failed("update", HEARTBEAT))
    }

    /// All tables as the programs see them now.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn dump(&self) -> Result<Snapshot<F>, Error> {
        let heartbeat = self
            .heartbeat
            .get(&0, 0)
            .map_err(failed("read", HEARTBEAT))?;
        Ok(Snapshot {
            flows: self.flows()?.into_iter().map(|(key, _)| key).collect(),
            leases_are_stale: heartbeat.leases_until_ns <= now_ns(),
            ..self.tables()?
        })
    }

    /// The tables that the agent fills, without the flows and the heartbeat, because these change
    /// all the time.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn tables(&self) -> Result<Snapshot<F>, Error> {
        Ok(Snapshot {
            peers: self.peers.dump()?,
            vteps: self.vteps.dump()?,
            ..self.known_pods()?
        })
    }
}

/// The clock that the programs use (`CLOCK_MONOTONIC`), in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
    })
}

/// The kernel's ids of the pinned maps, in the order of [`all`].
///
/// # Errors
/// [`Error::Map`] where a pin is missing or holds something else.
pub fn ids(pins: &Pins) -> Result<Vec<u32>, Error> {
    all::<V4>().map(|name| id(pins, name)).collect()
}

/// The kernel's id of the map that is pinned under a name.
pub(super) fn id(pins: &Pins, name: &'static str) -> Result<u32, Error> {
    let info = MapInfo::from_pin(pins.map(name)).map_err(failed("inspect pinned", name))?;
    Ok(info.id())
}

pub(super) fn open<M: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    name: &'static str,
) -> Result<M, Error> {
    MapData::from_pin(pins.map(name))
        .and_then(Map::from_map_data)
        .and_then(M::try_from)
        .map_err(failed("open pinned", name))
}

/// Removes the entries that `desired` does not have; returns how many.
fn retire<K: Plain + Ord, V: Plain>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    desired: &BTreeMap<K, V>,
) -> Result<usize, Error> {
    let mut removed = 0;
    for key in dump(map, name)?
        .keys()
        .filter(|key| !desired.contains_key(key))
    {
        missing_is_none(map.remove(key)).map_err(failed("delete from", name))?;
        removed += 1;
    }
    Ok(removed)
}

/// Writes the entries that are new or different, each in one step; returns how many.
fn fill<K: Plain + Ord, V: Plain + PartialEq>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    desired: &BTreeMap<K, V>,
) -> Result<usize, Error> {
    let current = dump(map, name)?;
    let mut written = 0;
    for (key, value) in desired
        .iter()
        .filter(|(key, value)| current.get(key) != Some(value))
    {
        map.insert(key, value, 0).map_err(failed("update", name))?;
        written += 1;
    }
    Ok(written)
}

pub(super) fn dump<K: Plain + Ord, V: Plain>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<BTreeMap<K, V>, Error> {
    // An entry that goes while the walk is on it starts the walk anew; a map of a few thousand
    // entries that only this node's agent and plugin change settles at once.
    map.iter()
        .collect::<Result<_, _>>()
        .map_err(failed("dump", name))
}

fn missing_is_none<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

pub(super) fn failed(call: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| Error::Map { call, map, source }
}
