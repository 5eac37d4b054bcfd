//! The XDP program: one to a device, native, by a pinned link (Linux 5.9; with packets in several
//! buffers 5.18).

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp};
use overlay_common::Hook;

use super::{Attached, Programs, attach_failed, link_failed, name, pinned_program};
use crate::datapath::Error;
use crate::datapath::pins::Pins;
use crate::kernel::nic::Nic;

const HOOK: Hook = Hook::NetXdp;

impl Programs {
    fn xdp(&mut self) -> Result<&mut Xdp, Error> {
        self.ebpf
            .program_mut(name(HOOK))
            .and_then(|program| program.try_into().ok())
            .ok_or(Error::Missing(name(HOOK)))
    }

    /// The loaded program's id. A kernel that refuses the XDP program can still have a fast path.
    fn load_xdp(&mut self) -> Result<u32, Error> {
        let program = self.xdp()?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(source) => return Err(not_taken(source)),
        }
        program.info().map(|info| info.id()).map_err(not_taken)
    }

    /// Attaches this agent's program to a NIC, in place of an earlier agent's.
    ///
    /// # Errors
    /// Where a foreign program is attached there, or the driver has no native XDP
    /// ([`Error::Attach`]); or [`Error::Link`], [`Error::Pin`], [`Error::Program`].
    pub fn attach_xdp(&mut self, nic: &Nic) -> Result<Attached, Error> {
        let id = self.load_xdp()?;
        let pin = self.pins.link(HOOK, nic.ifindex);
        let pinned = pinned_program(&pin);
        match pinned {
            Some(program) if nic.xdp_program == pinned => {
                if program == id {
                    return Ok(Attached::Already);
                }
                let link = PinnedLink::from_pin(&pin)
                    .map_err(|error| link_failed("open", &pin, &error))?;
                let link = XdpLink::try_from(FdLink::from(link))
                    .map_err(|error| link_failed("take over", &pin, &error))?;
                let program = self.xdp()?;
                let link = program
                    .attach_to_link(link)
                    .and_then(|link| program.take_link(link))
                    .map_err(attach_failed("bpf_link_update", HOOK, &nic.name))?;
                // The pin still holds it; only our handle goes.
                drop(link);
                return Ok(Attached::Swapped);
            }
            // Detached behind our back, or its device was replaced.
            Some(_) => Pins::remove(&pin)?,
            None => {}
        }
        let program = self.xdp()?;
        let link = program
            .attach_to_if_index(nic.ifindex, XdpMode::Driver)
            .and_then(|link| program.take_link(link))
            .map_err(attach_failed("bpf_link_create", HOOK, &nic.name))?;
        let link = FdLink::try_from(link).map_err(|error| link_failed("pin", &pin, &error))?;
        link.pin(&pin)
            .map_err(|error| link_failed("pin", &pin, &error))?;
        Ok(Attached::New)
    }
}

fn not_taken(source: ProgramError) -> Error {
    Error::Program {
        program: name(HOOK),
        source: Box::new(source),
    }
}
