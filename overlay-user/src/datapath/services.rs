//! Services at the socket, seen from user space: the programs, their links, their maps.
//!
//! The programs that choose a server (on connect and sendmsg) live as long as the agent: their
//! links are its descriptors and no pins, because nobody else keeps the maps true, and kube-proxy
//! takes over at once. Those that say a Service's address (on recvmsg and getpeername) are pinned,
//! as the memory of what sockets were given is: sockets that stand need both, and the next agent
//! puts its own in their place.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, MapData, PerCpuArray};
use aya::programs::cgroup_skb::{CgroupSkbAttachType, CgroupSkbLinkId};
use aya::programs::links::{CgroupAttachMode, FdLink};
use aya::programs::{CgroupSkb, CgroupSockAddr, ProgramError};
use aya::{Ebpf, EbpfLoader};
use overlay_common::socket::{Operation, Verdict, counter_index};

use super::maps::{failed, now_ns, open};
use super::pins::Pins;
use super::shapes::{self, Misfit};
use super::{Error, short};
use crate::service::ServiceTable;

pub mod contents;
mod entries;
mod gone;
mod presence;
mod view;

use contents::{Changed, Contents};
use entries::MapWriter;
use presence::Ids;
pub use view::{FrontendView, view};

/// The map of addresses of Services.
pub const SERVICES: &str = "ov_services";
/// The map of their servers.
pub const SERVERS: &str = "ov_servers";
/// The map of pods that are left to kube-proxy.
const OPTED_OUT: &str = "ov_opted_out";
/// The maps that are valid only while an agent keeps them up to date.
const KEPT: [&str; 3] = [SERVICES, SERVERS, OPTED_OUT];
/// The map of counters.
pub const COUNTS: &str = "ov_socket_count";
/// The maps that outlive the agent, because connected sockets need them.
const MEMORY: [&str; 4] = ["ov_affinity", CONNECTED, "ov_unconnected", COUNTS];
/// The map of the translations of connected sockets.
const CONNECTED: &str = "ov_connected";

/// The programs that live as long as the agent.
const CHOOSING: [&str; 4] = ["ov_connect4", "ov_connect6", "ov_sendmsg4", "ov_sendmsg6"];
/// The programs that outlive the agent.
const SAYING: [&str; 4] = [
    "ov_recvmsg4",
    "ov_recvmsg6",
    "ov_getpeername4",
    "ov_getpeername6",
];
/// The program that returns an error to a connected datagram socket whose server does not serve any
/// more.
const GONE: &str = "ov_server_gone";

/// A link to a control group takes several programs by itself.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// The programs at the socket, loaded.
pub struct SocketPrograms {
    ebpf: Ebpf,
    ids: Ids,
    pins: Pins,
    /// The group whose sockets they serve.
    group: PathBuf,
    entries: MapWriter,
    opted_out: HashMap<MapData, u64, u32>,
    are_opted_out: BTreeSet<u64>,
    contents: Contents,
    /// Whether sockets may have been given servers before.
    had_predecessor: bool,
    /// While there may be connected sockets whose servers have gone.
    telling: Option<CgroupSkbLinkId>,
}

impl SocketPrograms {
    /// Loads the programs for the sockets of processes in `group` and below it; nothing is attached
    /// yet. What was pinned that does not fit is made anew, and returned.
    ///
    /// # Errors
    /// Any of [`Error`].
    pub fn load(
        bytes: &[u8],
        pins: &Pins,
        group: impl Into<PathBuf>,
    ) -> Result<(Self, Vec<Misfit>), Error> {
        pins.create()?;
        let misfits = shapes::misfits(pins, bytes, &MEMORY)?;
        for misfit in &misfits {
            Pins::remove(&pins.map(misfit.name))?;
        }
        let had_predecessor = pins.map(CONNECTED).exists();
        let mut loader = EbpfLoader::new();
        for name in MEMORY {
            loader.map_pin_path(name, pins.map(name));
        }
        // What an earlier agent has left in the others is true no more.
        for name in KEPT {
            Pins::remove(&pins.map(name))?;
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader
            .load(bytes)
            .map_err(|source| Error::Load(Box::new(source)))?;
        load_programs(&mut ebpf)?;
        let ids = Ids::of(&ebpf, pins)?;
        let entries = MapWriter::open(pins)?;
        let opted_out = open(pins, OPTED_OUT)?;
        let services = Self {
            ebpf,
            ids,
            pins: pins.clone(),
            group: group.into(),
            entries,
            opted_out,
            are_opted_out: BTreeSet::new(),
            // Ids above the newest one have never been given out.
            contents: Contents::empty(now_ns()),
            had_predecessor,
            telling: None,
        };
        Ok((services, misfits))
    }

    /// Writes `table` into the maps; connected datagram sockets whose server is not in the table
    /// any more get an error.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Group`]; what is in the maps is not known then.
    pub fn update(&mut self, table: &ServiceTable) -> Result<Changed, Error> {
        let changed = self.contents.become_table(table, &mut self.entries)?;
        if changed.datagram_server_left {
            self.tell_of_gone()?;
        }
        Ok(changed)
    }

    /// Leaves Services to kube-proxy for these network namespaces (`SO_NETNS_COOKIE`), and for no
    /// others.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn leave_to_kube_proxy(&mut self, wanted: &BTreeSet<u64>) -> Result<(), Error> {
        for cookie in wanted.difference(&self.are_opted_out) {
            let inserted = self.opted_out.insert(cookie, 0, 0);
            inserted.map_err(failed("update", OPTED_OUT))?;
        }
        for cookie in self.are_opted_out.difference(wanted) {
            let removed = self.opted_out.remove(cookie);
            removed.map_err(failed("delete from", OPTED_OUT))?;
        }
        self.are_opted_out.clone_from(wanted);
        Ok(())
    }

    /// The contents of the maps.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The group whose sockets are served.
    #[must_use]
    pub fn group(&self) -> &Path {
        &self.group
    }

    /// Attaches the programs: first those that say a Service's address, because sockets that get a
    /// server need them; an earlier agent's go when this one's are there.
    ///
    /// # Errors
    /// [`Error::Group`], [`Error::Link`], [`Error::Pin`].
    pub fn attach(&mut self) -> Result<(), Error> {
        let group = File::open(&self.group)
            .map_err(|error| self.refused("open", SAYING[0])(ProgramError::IOError(error)))?;
        for name in SAYING {
            let refused = self.refused("bpf_link_create", name);
            let program = program(&mut self.ebpf, name)?;
            let link = program
                .attach(&group, MODE)
                .and_then(|link| program.take_link(link))
                .map_err(refused)?;
            self.pin(link, name)?;
        }
        // Sockets of an earlier agent's time may have lost their servers meanwhile.
        if self.had_predecessor {
            self.tell_of_gone()?;
        }
        for name in CHOOSING {
            let refused = self.refused("bpf_link_create", name);
            program(&mut self.ebpf, name)?
                .attach(&group, MODE)
                .map_err(refused)?;
        }
        Ok(())
    }

    /// Pins the link of a program in the place of an earlier agent's, which ends that one's.
    fn pin(
        &self,
        link: aya::programs::cgroup_sock_addr::CgroupSockAddrLink,
        name: &'static str,
    ) -> Result<(), Error> {
        let pin = link_pin(&self.pins, name);
        // A BPF file system takes no dots in names.
        let new = pin.with_file_name("new");
        let failed = |error: &dyn std::error::Error| Error::Link {
            call: "pin",
            path: new.clone(),
            message: short(error),
        };
        Pins::remove(&new)?;
        let link = FdLink::try_from(link).map_err(|error| failed(&error))?;
        link.pin(&new).map_err(|error| failed(&error))?;
        fs::rename(&new, &pin).map_err(|source| Error::Pin {
            call: "rename",
            path: pin,
            source,
        })
    }

    /// The program or pin that another process has removed, if any.
    #[must_use]
    pub fn disturbance(&self) -> Option<String> {
        let is_telling = self.is_telling();
        self.ids.disturbance(&self.pins, &self.group, is_telling)
    }

    /// Pins the memory of what sockets were given where its pins are gone, so that the next
    /// [`load`](Self::load) takes the memory over.
    ///
    /// # Errors
    /// [`Error::Pin`], [`Error::Link`].
    pub fn pin_memory(&self) -> Result<(), Error> {
        self.ids.pin_memory(&self.ebpf, &self.pins)
    }

    /// Attaches the program that checks, for every packet, whether the server of the packet's
    /// socket still serves.
    fn tell_of_gone(&mut self) -> Result<(), Error> {
        if self.telling.is_some() {
            return Ok(());
        }
        let opened = File::open(&self.group);
        let group =
            opened.map_err(|error| self.refused("open", GONE)(ProgramError::IOError(error)))?;
        let refused = self.refused("bpf_link_create", GONE);
        let program = teller(&mut self.ebpf)?;
        let link = program.attach(group, CgroupSkbAttachType::Egress, MODE);
        self.telling = Some(link.map_err(refused)?);
        Ok(())
    }

    /// Whether packets' sockets are checked; see [`look_for_gone`](Self::look_for_gone).
    #[must_use]
    pub fn is_telling(&self) -> bool {
        self.telling.is_some()
    }

    /// Stops the check of packets' sockets if no socket has lost its server, because the check
    /// costs each packet time.
    ///
    /// # Errors
    /// Any of [`Error`] where the sockets cannot be walked over; the check goes on then.
    pub fn look_for_gone(&mut self) -> Result<(), Error> {
        if self.is_telling()
            && gone::count(&mut self.ebpf, &self.pins)? == 0
            && let Some(link) = self.telling.take()
        {
            let refused = self.refused("detach", GONE);
            teller(&mut self.ebpf)?.detach(link).map_err(refused)?;
        }
        Ok(())
    }

    fn refused(
        &self,
        call: &'static str,
        program: &'static str,
    ) -> impl FnOnce(ProgramError) -> Error + use<> {
        let path = self.group.clone();
        move |source| Error::Group {
            call,
            program,
            path,
            source: Box::new(source),
        }
    }
}

/// Loads every program.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), Error> {
    let refused = |program| {
        move |source| Error::Program {
            program,
            source: Box::new(source),
        }
    };
    for name in CHOOSING.into_iter().chain(SAYING) {
        program(ebpf, name)?.load().map_err(refused(name))?;
    }
    teller(ebpf)?.load().map_err(refused(GONE))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, Error> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Missing(name))
}

fn teller(ebpf: &mut Ebpf) -> Result<&mut CgroupSkb, Error> {
    ebpf.program_mut(GONE)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Missing(GONE))
}

/// Loads the programs over maps that nobody sees, to find out whether this kernel takes them.
///
/// # Errors
/// [`Error::Load`], [`Error::Program`], [`Error::NoObject`].
pub fn try_loading() -> Result<(), Error> {
    let mut loader = EbpfLoader::new();
    for name in [SERVICES, SERVERS, MEMORY[0]] {
        loader.map_max_entries(name, 1);
    }
    let ebpf = loader.load(super::object::services()?);
    load_programs(&mut ebpf.map_err(|source| Error::Load(Box::new(source)))?)
}

/// Removes the maps of Services, because no agent keeps them up to date. The maps that connected
/// sockets need stay.
///
/// # Errors
/// [`Error::Pin`].
pub fn forget(pins: &Pins) -> Result<(), Error> {
    KEPT.iter()
        .try_for_each(|name| Pins::remove(&pins.map(name)))
}

/// The counters of each operation and verdict that are not zero, summed over all CPUs.
///
/// # Errors
/// [`Error::Map`] where there are no programs.
pub fn counters(pins: &Pins) -> Result<Vec<(Operation, Verdict, u64)>, Error> {
    let map: PerCpuArray<MapData, u64> = open(pins, COUNTS)?;
    let mut counters = Vec::new();
    for operation in Operation::ALL {
        for verdict in Verdict::ALL {
            let values = map.get(&counter_index(operation, *verdict), 0);
            let sum: u64 = values.map_err(failed("read", COUNTS))?.iter().sum();
            if sum != 0 {
                counters.push((operation, *verdict, sum));
            }
        }
    }
    Ok(counters)
}

/// Whether a pin of this name is one of these programs', which live by other rules than the packet
/// programs.
#[must_use]
pub fn is_pin(name: &str) -> bool {
    let links = SAYING.into_iter();
    links.chain(maps()).any(|known| known == name)
}

/// The maps that are pinned.
fn maps() -> impl Iterator<Item = &'static str> {
    MEMORY.into_iter().chain(KEPT)
}

/// The pin of the link that holds a program.
fn link_pin(pins: &Pins, program: &str) -> PathBuf {
    pins.links().join(program)
}
