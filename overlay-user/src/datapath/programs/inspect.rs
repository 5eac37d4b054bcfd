//! What sits on a hook, for those who look.

use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramInfo, SchedClassifier};
use overlay_common::Hook;

use super::super::Error;
use super::{attach_failed, direction, link_failed};

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
