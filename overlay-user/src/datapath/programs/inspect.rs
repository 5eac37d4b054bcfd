//! Lists the programs on a hook, for the tools.
//!
//! Opening a program by its id needs `CAP_SYS_ADMIN`, which the agent's container does not have.
//! The pinned links show without that capability which of the programs are ours, and the names of
//! ours are known.

use std::path::Path;

use aya::programs::ProgramInfo;
use overlay_common::Hook;

use super::super::Error;
use super::{attached_ids, link_failed, name, pinned_link};

/// A program on a hook.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OnHook {
    /// The kernel's id of the program.
    pub id: u32,
    /// Name of the program; absent where the program is not ours and this process lacks the
    /// privilege to read the name.
    pub name: Option<String>,
    /// Number of instructions that the verifier walked through (Linux 5.16); absent where this
    /// process lacks the privilege to read the number.
    pub verified_instructions: Option<u32>,
}

/// The programs on an interface's tc hook, in their order of execution. `pin` is the link that
/// holds ours.
///
/// # Errors
/// [`Error::Attach`]; needs `CAP_NET_ADMIN`.
pub fn on_hook(
    hook: Hook,
    interface: &str,
    ifindex: u32,
    pin: &Path,
) -> Result<Vec<OnHook>, Error> {
    let ids = attached_ids(hook, interface, ifindex)?;
    let ours = pinned_link(pin).map_err(|error| link_failed("inspect", pin, &error))?;
    let describe = |id| describe(id, (id == ours).then_some(hook));
    Ok(ids.into_iter().map(describe).collect())
}

/// The program that a pinned link holds. On a hook that takes one program only, no other exists.
///
/// # Errors
/// [`Error::Link`]; needs `CAP_BPF`.
pub fn on_link(hook: Hook, pin: &Path) -> Result<OnHook, Error> {
    let id = pinned_link(pin).map_err(|error| link_failed("inspect", pin, &error))?;
    Ok(describe(id, Some(hook)))
}

/// A loaded program, by the kernel's id; `None` where the program no longer exists, or without
/// `CAP_SYS_ADMIN`.
fn by_id(id: u32) -> Option<OnHook> {
    let mut loaded = aya::programs::loaded_programs().filter_map(Result::ok);
    loaded
        .find(|info| info.id() == id)
        .map(|info| of_info(&info))
}

/// A program by its id. Where the kernel does not show the program, only the facts that are known
/// of ours.
#[must_use]
pub fn describe(id: u32, ours: Option<Hook>) -> OnHook {
    by_id(id).unwrap_or_else(|| OnHook {
        id,
        name: ours.map(|hook| name(hook).to_owned()),
        verified_instructions: None,
    })
}

fn of_info(info: &ProgramInfo) -> OnHook {
    OnHook {
        id: info.id(),
        name: info.name_as_str().map(str::to_owned),
        verified_instructions: info.verified_instruction_count(),
    }
}
