//! Loading the programs, attaching them, and taking over what an earlier agent has left attached.
//!
//! Where the kernel has tcx (Linux 6.6) a program sits on its hook by a link, pinned: the hook is
//! never empty while a new agent swaps in its own program (`BPF_LINK_UPDATE`). Elsewhere it is a
//! filter of the clsact qdisc at a place of its own, which a new agent replaces in one step.

use std::collections::BTreeSet;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use overlay_common::{Hook, V4};

use super::pins::Pins;
use super::shapes::{Misfit, check_pins};
use super::{Error, maps, query};
use crate::marks::CLSACT_PRIORITY;

mod detach;
mod inspect;
mod offer;
mod xdp;

pub use inspect::{OnHook, describe, on_hook, on_link};
pub use offer::attach_offered;

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

/// The direction of packets at a hook of tc, seen from the device.
#[must_use]
pub const fn direction(hook: Hook) -> TcAttachType {
    match hook {
        Hook::PodIn | Hook::NetIn | Hook::NetXdp => TcAttachType::Ingress,
        Hook::PodOut | Hook::VtepOut => TcAttachType::Egress,
    }
}

/// Whether a hook sees the packets that leave by the device.
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
pub enum Mechanism {
    /// tcx links (Linux 6.6).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

const CLSACT: NlOptions = NlOptions {
    priority: CLSACT_PRIORITY,
    handle: TcHandle::new(0, 1),
    classid: None,
};

/// The loaded programs of this agent.
pub struct Programs {
    ebpf: Ebpf,
    pins: Pins,
    mechanism: Mechanism,
    /// Where clsact filters of ours are, this agent's or an earlier one's, as far as known.
    filters: BTreeSet<(Hook, u32)>,
    /// Where this agent has put clsact filters.
    own_filters: BTreeSet<(Hook, u32)>,
    /// Whether devices have been searched for filters that an earlier agent has left where none
    /// belongs.
    searched: bool,
}

/// The owners of the programs on a hook, seen from this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// A program of ours: this agent's or an earlier one's.
    pub ours: bool,
    /// A foreign program.
    pub foreign: bool,
}

/// The result of attaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// This agent's program was there already.
    Already,
    /// There was no program of ours on the hook before.
    New,
    /// An earlier agent's program was swapped for this agent's.
    Swapped,
}

impl Programs {
    /// Loads the programs of an object file over the pinned maps, creating and pinning what is
    /// missing.
    ///
    /// The maps belong together: unless each is pinned and fits in type, sizes and flags, all are
    /// unpinned and made anew; what did not fit is returned. The programs that still run on the old
    /// ones keep them until they are swapped.
    ///
    /// # Errors
    /// Any of [`Error`]; nothing is attached then.
    pub fn load(
        bytes: &[u8],
        pins: &Pins,
        mechanism: Mechanism,
    ) -> Result<(Self, Vec<Misfit>), Error> {
        pins.create()?;
        let misfits = check_pins(pins, bytes)?;
        let mut loader = EbpfLoader::new();
        for name in maps::all::<V4>() {
            loader.map_pin_path(name, pins.map(name));
        }
        let ebpf = loader
            .load(bytes)
            .map_err(|source| Error::Load(Box::new(source)))?;
        let mut programs = Self {
            ebpf,
            pins: pins.clone(),
            mechanism,
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
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Notes where our clsact filters are, as read by netlink.
    pub fn note_filters(&mut self, filters: BTreeSet<(Hook, u32)>) {
        self.filters = filters;
    }

    /// Finds the owners of the programs on a hook: with tcx by asking the kernel, with clsact by
    /// the filters noted last.
    ///
    /// # Errors
    /// [`Error::Attach`].
    pub fn presence(
        &mut self,
        hook: Hook,
        interface: &str,
        ifindex: u32,
    ) -> Result<Presence, Error> {
        match self.mechanism {
            Mechanism::Tcx => {
                let pinned = pinned_program(&self.pins.link(hook, ifindex));
                let there = attached_ids(hook, interface, ifindex)?;
                let is_ours = |id: &u32| Some(*id) == pinned;
                Ok(Presence {
                    ours: there.iter().any(is_ours),
                    foreign: !there.iter().all(is_ours),
                })
            }
            // Filters of others show as a foreign qdisc.
            Mechanism::Clsact => Ok(Presence {
                ours: self.filters.contains(&(hook, ifindex)),
                foreign: false,
            }),
        }
    }

    /// Attaches this agent's program to an interface, in place of an earlier agent's.
    ///
    /// # Errors
    /// [`Error::Attach`], [`Error::Link`], [`Error::Pin`].
    pub fn attach(&mut self, hook: Hook, interface: &str, ifindex: u32) -> Result<Attached, Error> {
        match self.mechanism {
            Mechanism::Tcx => self.attach_tcx(hook, interface, ifindex),
            Mechanism::Clsact => self.attach_clsact(hook, interface, ifindex),
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
        link_program(self.program(hook)?, &pin, hook, interface)?;
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
        let program = self.program(hook)?;
        if was_there {
            let there = SchedClassifierLink::attached(
                interface,
                direction(hook),
                CLSACT.priority,
                CLSACT.handle,
                CLSACT.classid,
            );
            let link = there
                .map_err(ProgramError::IOError)
                .and_then(|link| program.attach_to_link(link))
                .and_then(|link| program.take_link(link))
                .map_err(attach_failed("RTM_NEWTFILTER", hook, interface))?;
            leave_attached(link);
        } else {
            add_filter(program, hook, interface)?;
        }
        self.filters.insert(site);
        self.own_filters.insert(site);
        Ok(if was_there {
            Attached::Swapped
        } else {
            Attached::New
        })
    }
}

/// Attaches a program to a tcx hook by a link, and pins that in place of whatever is pinned there.
fn link_program(
    program: &mut SchedClassifier,
    pin: &Path,
    hook: Hook,
    interface: &str,
) -> Result<(), Error> {
    // Ours come first: what a short cut would bypass must not have been told of the packet.
    let link = program
        .attach_with_options(
            interface,
            direction(hook),
            TcAttachOptions::TcxOrder(LinkOrder::first()),
        )
        .and_then(|link| program.take_link(link))
        .map_err(attach_failed("bpf_link_create", hook, interface))?;
    let link = FdLink::try_from(link).map_err(|error| link_failed("pin", pin, &error))?;
    Pins::remove(pin)?;
    link.pin(pin)
        .map(drop)
        .map_err(|error| link_failed("pin", pin, &error))
}

/// Attaches a program as a filter of the clsact qdisc, which is made if need be.
fn add_filter(program: &mut SchedClassifier, hook: Hook, interface: &str) -> Result<(), Error> {
    // An interface that has the qdisc says so by an error of its own.
    if let Err(error) = aya::programs::tc::qdisc_add_clsact(interface) {
        tracing::trace!(interface, %error, "clsact");
    }
    let link = program
        .attach_with_options(interface, direction(hook), TcAttachOptions::Netlink(CLSACT))
        .and_then(|link| program.take_link(link))
        .map_err(attach_failed("RTM_NEWTFILTER", hook, interface))?;
    leave_attached(link);
    Ok(())
}

/// A filter has to outlive us: a link that is dropped would detach it.
fn leave_attached(link: SchedClassifierLink) {
    std::mem::forget(link);
}

fn attached_ids(hook: Hook, interface: &str, ifindex: u32) -> Result<Vec<u32>, Error> {
    query::tcx_program_ids(ifindex, direction(hook)).map_err(|error| {
        attach_failed("bpf_prog_query", hook, interface)(ProgramError::IOError(error))
    })
}

/// The program that a pinned link holds.
fn pinned_program(pin: &Path) -> Option<u32> {
    pinned_link(pin).ok()
}

/// The same, with what the kernel says where there is none.
pub(super) fn pinned_link(pin: &Path) -> Result<u32, LinkError> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    Ok(link.info()?.program_id())
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
