//! The fast path seen from user space: the only code that calls bpf(2).
//!
//! The programs and maps are pinned below a directory of their own (see [`pins`]), so they outlive
//! the agent. [`programs`] loads, attaches and swaps programs; [`maps`] reads and writes the pinned
//! maps; [`tables`] is what the maps should hold, as pure data; [`early`] decides on early refusal
//! at the NIC; [`services`] has the programs at the socket; [`probe`] finds out what this kernel
//! can do, by trying.

use std::io;
use std::path::PathBuf;

pub mod early;
pub mod events;
pub mod family;
pub mod maps;
pub mod object;
pub mod pins;
pub mod pods;
pub mod probe;
pub mod programs;
mod query;
pub mod services;
pub mod shapes;
mod syscall;
pub mod tables;

/// What can go wrong with the fast path; the kernel path goes on in every case.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent was built without the eBPF object.
    #[error("this build carries no eBPF programs: build it with `cargo xtask build`")]
    NoObject,
    /// The object lacks what every packet has to go through.
    #[error(
        "the eBPF programs of this build are for measuring only, built {0}: build with `cargo \
        xtask build`, or try them out by --programs FILE"
    )]
    ForMeasuring(String),
    /// An object file that was asked for cannot be read.
    #[error("read the eBPF programs in {}: {source}", path.display())]
    ReadObject {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pin directory is not on a BPF file system.
    #[error(
        "{path} is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf (a container: give \
        it the host's)"
    )]
    NotBpfFs {
        /// The directory.
        path: PathBuf,
    },
    /// A file operation on the pins failed.
    #[error("{call} {path}: {source}")]
    Pin {
        /// The call.
        call: &'static str,
        /// The pin.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel did not take the object.
    #[error("load the eBPF object: {}", short(.0.as_ref()))]
    Load(#[source] Box<aya::EbpfError>),
    /// The verifier did not take a program.
    #[error("load program {program}: {}", short(.source.as_ref()))]
    Program {
        /// Name of the link.
        program: &'static str,
        /// What the kernel said, verifier log included.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program could not be attached, or its attachment not be read.
    #[error("{call} {program} on {interface}: {}", short(.source.as_ref()))]
    Attach {
        /// The call.
        call: &'static str,
        /// The program.
        program: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's error.
        source: Box<aya::programs::ProgramError>,
    },
    /// A link could not be taken over or pinned.
    #[error("{call} {path}: {message}")]
    Link {
        /// The call.
        call: &'static str,
        /// The pin.
        path: PathBuf,
        /// The kernel's error.
        message: String,
    },
    /// A program could not be attached to a control group.
    #[error("{call} {program} to {}: {}", path.display(), short(.source.as_ref()))]
    Group {
        /// The call.
        call: &'static str,
        /// The program.
        program: &'static str,
        /// The group.
        path: PathBuf,
        /// The kernel's error.
        source: Box<aya::programs::ProgramError>,
    },
    /// The sockets that were given servers could not be walked over.
    #[error("look at sockets by a BPF iterator: {0}")]
    Walk(#[source] io::Error),
    /// There is no control group of all sockets.
    #[error(transparent)]
    Hierarchy(#[from] crate::kernel::cgroup::Error),
    /// A clsact filter could not be taken off.
    #[error("{call} {interface}: {message}")]
    Filter {
        /// The call.
        call: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's error.
        message: String,
    },
    /// The object lacks something that this build expects in it.
    #[error("the eBPF object has no {0}: it is from another build")]
    Missing(&'static str),
    /// A map operation failed.
    #[error("{call} map {map}: {}", short(.source))]
    Map {
        /// The call.
        call: &'static str,
        /// The map's name.
        map: &'static str,
        /// The kernel's error.
        source: aya::maps::MapError,
    },
    /// Which flows the IP stack translates is not known.
    #[error("connection tracking does not answer: {0}")]
    Flows(#[source] crate::kernel::Error),
    /// How the other nodes are reached is not known.
    #[error("the routes to the other nodes are not known: {0}")]
    Ways(#[source] crate::kernel::Error),
    /// An address of a family that the maps do not hold.
    #[error("{0} is not an address of the overlay's family")]
    Family(std::net::IpAddr),
}

/// The first line of an error and of what caused it: a verifier log has thousands more.
fn short(error: &dyn std::error::Error) -> String {
    let mut text = first_line(error);
    let mut source = error.source();
    while let Some(cause) = source {
        let line = first_line(cause);
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        source = cause.source();
    }
    text
}

fn first_line(error: &dyn std::error::Error) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches(':')
        .to_owned()
}
