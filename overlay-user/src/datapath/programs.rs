//! Loading the programs, attaching them, and taking over what an earlier agent has left attached.
//!
//! Where the kernel has tcx (Linux 6.6) a program sits on its hook by a link, pinned: the hook is never empty
//! while a new agent swaps in its own program (`BPF_LINK_UPDATE`). Elsewhere it is a filter of the clsact
//! qdisc at a place of its own, which a new agent replaces in one step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{Link as _, ProgramError, ProgramInfo, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use overlay_common::Hook;

use super::pins::Pins;
use super::shapes::{Misfit, check_pins};
use super::{Error, maps, refusals};

mod query;
mod xdp;

/// The name of the program for a hook.
#[must_use]
pub const fn name(hook: Hook) -> &'static str {
    match hook {
        Hook::PodIn => "ov_pod_in",
        Hook::NetIn => "ov_net_in",
        Hook::PodOut => "ov_pod_out",
        Hook::VtepOut => "ov_vtep_out",
        Hook::NetXdp => "ov_net_xdp",
    }
}

/// Which way packets go at a hook of tc, seen from the device.
#[must_use]
pub const fn direction(hook: Hook) -> TcAttachType {
    match hook {
        Hook::PodIn | Hook::NetIn | Hook::NetXdp => TcAttachType::Ingress,
        Hook::PodOut | Hook::VtepOut => TcAttachType::Egress,
    }
}

/// Whether a hook sees what leaves by the device.
#[must_use]
pub const fn is_egress(hook: Hook) -> bool {
    matches!(direction(hook), TcAttachType::Egress)
}

/// The hooks of tc; the one that is none is in [`xdp`].
pub fn tc_hooks() -> impl Iterator<Item = Hook> {
    Hook::ALL.into_iter().filter(|hook| *hook != Hook::NetXdp)
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// tcx links (Linux 6.6).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// Our place among the filters of a clsact qdisc: "ov".
pub const CLSACT_PRIORITY: u16 = 0x6f76;

const CLSACT: NlOptions = NlOptions {
    priority: CLSACT_PRIORITY,
    handle: TcHandle::new(0, 1),
    classid: None,
};

/// The loaded programs of this agent.
pub struct Programs {
    /// Reads what the programs tell of refused packets, if they do.
    _refusals: Option<refusals::Reader>,
    ebpf: Ebpf,
    pins: Pins,
    attachment: Attachment,
    /// Where clsact filters of ours are, this agent's or an earlier one's, as far as known.
    filters: BTreeSet<(Hook, u32)>,
    /// Where this agent has put clsact filters.
    own_filters: BTreeSet<(Hook, u32)>,
    /// Whether devices have been searched for filters that an earlier agent has left where none belongs.
    searched: bool,
}

/// What sits on a hook, seen from this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// A program of ours: this agent's or an earlier one's.
    pub ours: bool,
    /// A program of somebody else.
    pub foreign: bool,
}

/// What attaching came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// This agent's program was there.
    Already,
    /// The hook was empty of ours before.
    New,
    /// An earlier agent's program was swapped for this agent's.
    Swapped,
}

impl Programs {
    /// Loads the programs of an object file over the pinned maps, creating and pinning what is missing.
    ///
    /// The maps belong together: unless each is pinned and fits in type, sizes and flags, all are unpinned and
    /// made anew; what did not fit is returned. The programs that still run on the old ones keep them until
    /// they are swapped. With `log_refused` the programs tell of every packet that they refuse, and that is
    /// passed on to the agent's log.
    ///
    /// # Errors
    /// Any of [`Error`]; nothing is attached then.
    pub fn load(
        bytes: &[u8],
        pins: &Pins,
        attachment: Attachment,
        log_refused: bool,
    ) -> Result<(Self, Vec<Misfit>), Error> {
        pins.create()?;
        let misfits = check_pins(pins, bytes)?;
        let mut loader = EbpfLoader::new();
        let level = refusals::level(log_refused);
        loader.override_global(aya_log::LEVEL, &level, false);
        for name in maps::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader
            .load(bytes)
            .map_err(|source| Error::Load(Box::new(source)))?;
        let refusals = log_refused.then(|| refusals::Reader::start(&mut ebpf));
        let mut programs = Self {
            _refusals: refusals.transpose()?,
            ebpf,
            pins: pins.clone(),
            attachment,
            filters: BTreeSet::new(),
            own_filters: BTreeSet::new(),
            searched: false,
        };
        for hook in tc_hooks() {
            programs
                .program(hook)?
                .load()
                .map_err(|source| Error::Program {
                    program: name(hook),
                    source: Box::new(source),
                })?;
        }
        Ok((programs, misfits))
    }

    fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier, Error> {
        self.ebpf
            .program_mut(name(hook))
            .and_then(|program| program.try_into().ok())
            .ok_or(Error::Missing(name(hook)))
    }

    /// The kernel's id of the program for a hook.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn id(&mut self, hook: Hook) -> Result<u32, Error> {
        let info = self.program(hook)?.info();
        Ok(info
            .map_err(|source| Error::Program {
                program: name(hook),
                source: Box::new(source),
            })?
            .id())
    }

    /// How programs are attached.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        self.attachment
    }

    /// Takes note of where our clsact filters are: that is netlink's to tell.
    pub fn note_filters(&mut self, filters: BTreeSet<(Hook, u32)>) {
        self.filters = filters;
    }

    /// Looks what sits on a hook: by tcx in the kernel, by clsact in what was noted last.
    ///
    /// # Errors
    /// [`Error::Attach`].
    pub fn presence(
        &mut self,
        hook: Hook,
        interface: &str,
        ifindex: u32,
    ) -> Result<Presence, Error> {
        match self.attachment {
            Attachment::Tcx => {
                let pinned = pinned_program(&self.pins.link(hook, ifindex));
                let there = attached_ids(hook, interface, ifindex)?;
                let is_ours = |id: &u32| Some(*id) == pinned;
                Ok(Presence {
                    ours: there.iter().any(is_ours),
                    foreign: !there.iter().all(is_ours),
                })
            }
            // Filters of others show as a foreign qdisc.
            Attachment::Clsact => Ok(Presence {
                ours: self.filters.contains(&(hook, ifindex)),
                foreign: false,
            }),
        }
    }

    /// Sees to it that this agent's program sits on an interface.
    ///
    /// # Errors
    /// [`Error::Attach`], [`Error::Link`], [`Error::Pin`].
    pub fn attach(&mut self, hook: Hook, interface: &str, ifindex: u32) -> Result<Attached, Error> {
        match self.attachment {
            Attachment::Tcx => self.attach_tcx(hook, interface, ifindex),
            Attachment::Clsact => self.attach_clsact(hook, interface, ifindex),
        }
    }

    fn attach_tcx(&mut self, hook: Hook, interface: &str, ifindex: u32) -> Result<Attached, Error> {
        let id = self.id(hook)?;
        let pin = self.pins.link(hook, ifindex);
        let there = attached_ids(hook, interface, ifindex)?;
        let pinned = pinned_program(&pin);
        match pinned {
            Some(program) if program == id && there.contains(&id) => return Ok(Attached::Already),
            // The link is alive with another program: swap, and the hook is never empty.
            Some(program) if there.contains(&program) => {
                let link = PinnedLink::from_pin(&pin)
                    .map_err(|error| link_failed("open", &pin, &error))?;
                let link = SchedClassifierLink::try_from(FdLink::from(link))
                    .map_err(|error| link_failed("take over", &pin, &error))?;
                let program = self.program(hook)?;
                let link = program
                    .attach_to_link(link)
                    .and_then(|link| program.take_link(link))
                    .map_err(attach_failed("bpf_link_update", hook, interface))?;
                // The pin still holds it; only our handle goes.
                drop(link);
                return Ok(Attached::Swapped);
            }
            // Detached behind our back, or its device was replaced.
            Some(_) => Pins::remove(&pin)?,
            None => {}
        }
        // Ours come first: what a short cut would bypass must not have been told of the packet.
        let program = self.program(hook)?;
        let link = program
            .attach_with_options(
                interface,
                direction(hook),
                TcAttachOptions::TcxOrder(LinkOrder::first()),
            )
            .and_then(|link| program.take_link(link))
            .map_err(attach_failed("bpf_link_create", hook, interface))?;
        let link = FdLink::try_from(link).map_err(|error| link_failed("pin", &pin, &error))?;
        Pins::remove(&pin)?;
        link.pin(&pin)
            .map_err(|error| link_failed("pin", &pin, &error))?;
        Ok(Attached::New)
    }

    fn attach_clsact(
        &mut self,
        hook: Hook,
        interface: &str,
        ifindex: u32,
    ) -> Result<Attached, Error> {
        let site = (hook, ifindex);
        let was_there = self.filters.contains(&site);
        if was_there && self.own_filters.contains(&site) {
            return Ok(Attached::Already);
        }
        // An interface that has the qdisc says so by an error of its own.
        if let Err(error) = aya::programs::tc::qdisc_add_clsact(interface) {
            tracing::trace!(interface, %error, "clsact");
        }
        let program = self.program(hook)?;
        let attached = if was_there {
            let there = SchedClassifierLink::attached(
                interface,
                direction(hook),
                CLSACT.priority,
                CLSACT.handle,
                CLSACT.classid,
            );
            there
                .map_err(ProgramError::IOError)
                .and_then(|link| program.attach_to_link(link))
        } else {
            program.attach_with_options(
                interface,
                direction(hook),
                TcAttachOptions::Netlink(CLSACT),
            )
        };
        let link = attached
            .and_then(|link| program.take_link(link))
            .map_err(attach_failed("RTM_NEWTFILTER", hook, interface))?;
        // The filter has to outlive us: a link that is dropped would detach it.
        std::mem::forget(link);
        self.filters.insert(site);
        self.own_filters.insert(site);
        Ok(if was_there {
            Attached::Swapped
        } else {
            Attached::New
        })
    }

    /// Detaches our programs wherever they are, and removes the links' pins.
    ///
    /// # Errors
    /// The first failure; the rest is done all the same.
    pub fn detach_all(pins: &Pins) -> Result<usize, Error> {
        let links = Self::detach_links(pins, |_| true);
        let filters = Self::detach_filters();
        Ok(links? + filters?)
    }

    /// Detaches what is attached by links, on the hooks that `of` picks.
    ///
    /// # Errors
    /// The first failure; the rest is done all the same.
    pub fn detach_links(pins: &Pins, of: impl Fn(Hook) -> bool) -> Result<usize, Error> {
        let mut done = 0;
        let mut first_error = None;
        for (_, _, path) in pins
            .list_links()?
            .into_iter()
            .filter(|(hook, ..)| of(*hook))
        {
            match detach(&path) {
                Ok(()) => done += 1,
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(done), Err)
    }

    /// Detaches what an agent of another ABI version has left attached by tcx, and removes its pins: nobody keeps
    /// those maps true any more.
    ///
    /// # Errors
    /// [`Error::Pin`], [`Error::Link`].
    pub fn detach_other_versions(pins: &Pins) -> Result<usize, Error> {
        let mut done = 0;
        for version in pins.other_versions()? {
            for link in Pins::links_of(&version)? {
                detach(&link)?;
                done += 1;
            }
            Pins::remove_version(&version)?;
        }
        Ok(done)
    }

    /// Detaches what is attached by clsact, on every device of this network namespace. The qdisc stays, as it
    /// may be somebody else's; empty it does nothing.
    ///
    /// # Errors
    /// The first failure; the rest is done all the same.
    pub fn detach_filters() -> Result<usize, Error> {
        let mut done = 0;
        let mut first_error = None;
        for (_, interface) in interfaces()? {
            for hook in tc_hooks() {
                match detach_filter(hook, &interface) {
                    Ok(there) => done += usize::from(there),
                    Err(error) => first_error = first_error.or(Some(error)),
                }
            }
        }
        first_error.map_or(Ok(done), Err)
    }

    /// Detaches from devices that are none of ours any more, and removes the pins of links whose devices are
    /// gone.
    ///
    /// # Errors
    /// [`Error::Pin`], [`Error::Link`], [`Error::Filter`].
    pub fn forget_gone(&mut self, alive: impl Fn(Hook, u32) -> bool) -> Result<usize, Error> {
        let mut gone = 0;
        let is_gone = |site: &&(Hook, u32)| !alive(site.0, site.1);
        for (hook, ifindex) in self.own_filters.iter().filter(is_gone) {
            if let Some(interface) = interface_name(*ifindex)? {
                gone += usize::from(detach_filter(*hook, &interface)?);
            }
        }
        self.own_filters.retain(|site| alive(site.0, site.1));
        if self.attachment == Attachment::Clsact && !self.searched {
            // An earlier agent may have run over another underlay.
            for (ifindex, interface) in interfaces()? {
                for hook in tc_hooks().filter(|hook| !alive(*hook, ifindex)) {
                    gone += usize::from(detach_filter(hook, &interface)?);
                }
            }
            self.searched = true;
        }
        for (hook, ifindex, path) in self.pins.list_links()? {
            if !alive(hook, ifindex) {
                detach(&path)?;
                gone += 1;
            }
        }
        Ok(gone)
    }
}

/// Every device, by index.
fn interfaces() -> Result<BTreeMap<u32, String>, Error> {
    let devices = nix::net::if_::if_nameindex().map_err(|errno| Error::Filter {
        call: "list the devices of",
        interface: "this network namespace".to_owned(),
        message: errno.to_string(),
    })?;
    let name = |device: &nix::net::if_::Interface| device.name().to_string_lossy().into_owned();
    Ok(devices
        .iter()
        .map(|device| (device.index(), name(device)))
        .collect())
}

fn interface_name(ifindex: u32) -> Result<Option<String>, Error> {
    Ok(interfaces()?.remove(&ifindex))
}

/// Detaches the filter of a hook; whether there was one.
fn detach_filter(hook: Hook, interface: &str) -> Result<bool, Error> {
    use aya::programs::TcError;
    match aya::programs::tc::qdisc_detach_program(interface, direction(hook), name(hook)) {
        Ok(()) => Ok(true),
        // No filter of that name, or no device any more.
        Err(TcError::IoError(_)) => Ok(false),
        Err(error) => Err(Error::Filter {
            call: "detach filter from",
            interface: interface.to_owned(),
            message: super::short(&error),
        }),
    }
}

/// Detaches the program of a pinned link and removes the pin.
fn detach(path: &Path) -> Result<(), Error> {
    // A link whose device is gone is detached already.
    if let Ok(link) = PinnedLink::from_pin(path)
        && let Err(error) = FdLink::from(link).detach()
    {
        return Err(link_failed("detach", path, &error));
    }
    Pins::remove(path)
}

/// What sits on a hook.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OnHook {
    /// The kernel's id of the program.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// How many instructions the verifier walked through (Linux 5.16).
    pub verified_instructions: Option<u32>,
}

/// The programs on an interface's tc hook, in the order they run.
///
/// # Errors
/// [`Error::Attach`]; needs `CAP_SYS_ADMIN`.
pub fn on_hook(hook: Hook, interface: &str) -> Result<Vec<OnHook>, Error> {
    let (_, programs) = SchedClassifier::query_tcx(interface, direction(hook))
        .map_err(attach_failed("bpf_prog_query", hook, interface))?;
    Ok(programs.iter().map(describe).collect())
}

/// The program that a pinned link holds: all that there is on a hook that takes one program only.
///
/// # Errors
/// [`Error::Link`]; needs `CAP_SYS_ADMIN`.
pub fn on_link(pin: &Path) -> Result<OnHook, Error> {
    let failed = |error: &dyn std::error::Error| link_failed("inspect", pin, error);
    let link = PinnedLink::from_pin(pin).map_err(|error| failed(&error))?;
    let id = FdLink::from(link)
        .info()
        .map_err(|error| failed(&error))?
        .program_id();
    by_id(id).ok_or_else(|| failed(&std::io::Error::from(std::io::ErrorKind::NotFound)))
}

/// A loaded program, by the kernel's id.
#[must_use]
pub fn by_id(id: u32) -> Option<OnHook> {
    let mut loaded = aya::programs::loaded_programs().filter_map(Result::ok);
    loaded
        .find(|info| info.id() == id)
        .map(|info| describe(&info))
}

fn describe(info: &ProgramInfo) -> OnHook {
    OnHook {
        id: info.id(),
        name: info.name_as_str().unwrap_or_default().to_owned(),
        verified_instructions: info.verified_instruction_count(),
    }
}

fn attached_ids(hook: Hook, interface: &str, ifindex: u32) -> Result<Vec<u32>, Error> {
    query::tcx_program_ids(ifindex, direction(hook)).map_err(|error| {
        attach_failed("bpf_prog_query", hook, interface)(ProgramError::IOError(error))
    })
}

/// The program that a pinned link holds.
fn pinned_program(pin: &Path) -> Option<u32> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    Some(link.info().ok()?.program_id())
}

fn attach_failed<'a>(
    call: &'static str,
    hook: Hook,
    interface: &'a str,
) -> impl FnOnce(ProgramError) -> Error + 'a {
    move |source| Error::Attach {
        call,
        program: name(hook),
        interface: interface.to_owned(),
        source: Box::new(source),
    }
}

fn link_failed(call: &'static str, path: &Path, error: &dyn std::error::Error) -> Error {
    Error::Link {
        call,
        path: path.to_owned(),
        message: super::short(error),
    }
}
