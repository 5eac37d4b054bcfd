//! The directories in which the agent pins maps and links, in the BPF file system.

use std::fmt;

use overlay_common::schema::ABI_VERSION;

/// A directory of pins, displayed as its path.
#[derive(Clone, Copy, Debug)]
pub struct Directory(&'static str);

/// All pins of this version of the programs.
pub const PINS: Directory = Directory("");
/// The maps, by name.
pub const MAPS: Directory = Directory("/maps");
/// The links of programs to hooks.
pub const LINKS: Directory = Directory("/links");

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/sys/fs/bpf/overlay/v{ABI_VERSION}{}", self.0)
    }
}
