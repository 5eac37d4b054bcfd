//! Checks whether the programs are attached and the pins exist, because the kernel sends no event
//! when another process removes them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;

use super::{CHOOSING, GONE, MEMORY, SAYING, link_pin, maps};
use crate::datapath::pins::Pins;
use crate::datapath::{self, Error, programs, query, short};

/// The hooks of [`CHOOSING`], of [`SAYING`] and of [`GONE`] (`enum bpf_attach_type` of
/// include/uapi/linux/bpf.h).
const CHOOSING_HOOKS: [u32; 4] = [10, 11, 14, 15];
const SAYING_HOOKS: [u32; 4] = [19, 20, 29, 30];
const EGRESS: u32 = 1;

/// The kernel's ids of what was loaded, by name.
pub(super) struct Ids {
    programs: BTreeMap<&'static str, u32>,
    maps: BTreeMap<&'static str, u32>,
}

impl Ids {
    /// Those of programs and maps that have just been loaded and pinned.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Map`].
    pub(super) fn of(ebpf: &Ebpf, pins: &Pins) -> Result<Self, Error> {
        let program = |name: &'static str| {
            let program = ebpf.program(name).ok_or(Error::Missing(name))?;
            let info = program.info().map_err(|source| Error::Program {
                program: name,
                source: Box::new(source),
            })?;
            Ok((name, info.id()))
        };
        let map = |name| Ok((name, datapath::maps::id(pins, name)?));
        let programs = CHOOSING.into_iter().chain(SAYING).chain([GONE]);
        Ok(Self {
            programs: programs.map(program).collect::<Result<_, Error>>()?,
            maps: maps().map(map).collect::<Result<_, Error>>()?,
        })
    }

    /// The first program or pin that is missing or replaced, if any.
    pub(super) fn disturbance(
        &self,
        pins: &Pins,
        group: &Path,
        is_telling: bool,
    ) -> Option<String> {
        if let Some(map) = maps().find(|map| !self.is_pinned(pins, map)) {
            return Some(format!("the pin of {map} is gone, or another map's"));
        }
        let is_other = |program: &&'static str| {
            let held = programs::pinned_link(&link_pin(pins, program)).ok();
            held != self.programs.get(program).copied()
        };
        if let Some(program) = SAYING.into_iter().find(is_other) {
            return Some(format!("the pin of {program}'s link is gone, or another's"));
        }
        match self.detached(group, is_telling) {
            Ok(None) => None,
            Ok(Some(program)) => Some(format!(
                "{program} is not attached to {} any more",
                group.display()
            )),
            Err(error) => Some(format!(
                "what is attached to {} is not known: {error}",
                group.display()
            )),
        }
    }

    /// The first program that is not attached and should be.
    fn detached(&self, group: &Path, is_telling: bool) -> std::io::Result<Option<&'static str>> {
        let group = File::open(group)?;
        let choosing = CHOOSING.into_iter().zip(CHOOSING_HOOKS);
        let saying = SAYING.into_iter().zip(SAYING_HOOKS);
        let telling = is_telling.then_some((GONE, EGRESS));
        for (program, hook) in choosing.chain(saying).chain(telling) {
            let attached = query::group_program_ids(group.as_fd(), hook)?;
            let id = self.programs.get(program);
            if !id.is_some_and(|id| attached.contains(id)) {
                return Ok(Some(program));
            }
        }
        Ok(None)
    }

    fn is_pinned(&self, pins: &Pins, map: &'static str) -> bool {
        datapath::maps::id(pins, map).ok() == self.maps.get(map).copied()
    }

    /// Pins the [`MEMORY`] again where its pins are not what they were.
    ///
    /// # Errors
    /// [`Error::Pin`], [`Error::Link`].
    pub(super) fn pin_memory(&self, ebpf: &Ebpf, pins: &Pins) -> Result<(), Error> {
        pins.create()?;
        for name in MEMORY {
            if self.is_pinned(pins, name) {
                continue;
            }
            let pin = pins.map(name);
            Pins::remove(&pin)?;
            let map = ebpf.map(name).ok_or(Error::Missing(name))?;
            map.pin(&pin).map_err(|error| Error::Link {
                call: "pin",
                path: pin.clone(),
                message: short(&error),
            })?;
        }
        Ok(())
    }
}
