//! Whether pinned maps have the shapes that the object declares. aya 0.14 takes any pinned map of
//! the right name.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::EbpfLoader;
use aya::maps::{Map, MapData, MapInfo, MapType};
use overlay_common::V4;

use super::pins::Pins;
use super::{Error, maps};

/// A pinned object that does not fit this build.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pinned map {name} is {found}, this build needs {wanted}: made anew")]
pub struct Misfit {
    pub(super) name: &'static str,
    found: String,
    wanted: String,
}

/// Unpins the maps if the object cannot work on one of them. aya 0.14 takes any pinned map that has
/// the right name.
pub fn check_pins(pins: &Pins, bytes: &[u8]) -> Result<Vec<Misfit>, Error> {
    let names: Vec<_> = maps::all::<V4>().collect();
    let is_pinned = |name: &&str| pins.map(name).exists();
    if !names.iter().any(is_pinned) {
        return Ok(Vec::new());
    }
    let misfits = misfits(pins, bytes, &names)?;
    let complete = misfits.is_empty() && names.iter().all(is_pinned);
    // A new map is empty. The configuration of the old ones says that they hold every peer, and
    // programs that believe it would refuse what peers send. Without one they leave everything to
    // the kernel.
    if !complete {
        // With them the programs that work on them.
        pins.remove_programs()?;
        for name in maps::all::<V4>() {
            Pins::remove(&pins.map(name))?;
        }
    }
    Ok(misfits)
}

/// The maps among `names` that are pinned and on which the object cannot work.
pub(super) fn misfits(
    pins: &Pins,
    bytes: &[u8],
    names: &[&'static str],
) -> Result<Vec<Misfit>, Error> {
    let pinned = declared(bytes, names)?
        .into_iter()
        .filter(|(name, _)| pins.map(name).exists());
    let compared = pinned.map(|(name, wanted)| Misfit {
        name,
        found: pinned_shape(&pins.map(name)),
        wanted,
    });
    Ok(compared.filter(|it| it.found != it.wanted).collect())
}

/// The shapes of maps that the object declares: read off a scratch copy, loaded without pins.
fn declared(bytes: &[u8], names: &[&'static str]) -> Result<BTreeMap<&'static str, String>, Error> {
    let scratch = EbpfLoader::new()
        .load(bytes)
        .map_err(|source| Error::Load(Box::new(source)))?;
    names
        .iter()
        .map(|name| {
            let name = *name;
            let map = scratch.map(name).ok_or(Error::Missing(name))?;
            let info = map_data(map)
                .ok_or(Error::Missing(name))?
                .info()
                .map_err(|source| Error::Map {
                    call: "inspect",
                    map: name,
                    source,
                })?;
            Ok((name, shape(&info)))
        })
        .collect()
}

/// What is pinned at `pin`.
fn pinned_shape(pin: &Path) -> String {
    // The kernel opens programs and links the same way, and tells of them in the same bytes.
    let is_map = |map: &MapData| {
        std::fs::read_link(format!("/proc/self/fd/{}", map.fd().as_fd().as_raw_fd()))
            .is_ok_and(|target| target.to_string_lossy().contains("bpf-map"))
    };
    match MapData::from_pin(pin) {
        Ok(map) if !is_map(&map) => "no map".to_owned(),
        Ok(map) => match map.info() {
            Ok(info) => shape(&info),
            Err(error) => format!("unreadable ({})", super::short(&error)),
        },
        Err(error) => format!("no map ({})", super::short(&error)),
    }
}

fn map_data(map: &Map) -> Option<&MapData> {
    use Map::{Array, DevMapHash, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage};
    match map {
        Array(data) | DevMapHash(data) | HashMap(data) | LruHashMap(data) | PerCpuArray(data)
        | RingBuf(data) | SkStorage(data) => Some(data),
        _ => None,
    }
}

fn shape(info: &MapInfo) -> String {
    let kind = match info.map_type() {
        Ok(MapType::Array) => "an array",
        Ok(MapType::Hash) => "a hash",
        Ok(MapType::LruHash) => "an LRU hash",
        Ok(MapType::PerCpuArray) => "a per-CPU array",
        Ok(MapType::DevMapHash) => "a device hash",
        Ok(MapType::RingBuf) => "a ring buffer",
        Ok(MapType::SkStorage) => "a socket storage",
        _ => "a map of another type",
    };
    format!(
        "{kind}, key {} B, value {} B, {} entries, flags {:#x}",
        info.key_size(),
        info.value_size(),
        info.max_entries(),
        info.map_flags()
    )
}
