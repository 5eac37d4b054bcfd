//! Counts the connected sockets whose servers do not serve any more.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;

use aya::maps::{Array, MapData};
use aya::programs::Iter;
use aya::{Btf, Ebpf};

use super::{CONNECTED, Pins};
use crate::datapath::Error;
use crate::datapath::maps::failed;
use crate::datapath::syscall;

/// The program that looks at a socket.
const PROGRAM: &str = "ov_find_gone";
/// The map of the program's count.
const FOUND: &str = "ov_found_gone";
/// The kernel's name of the iterator over socket storage.
const ITERATOR: &str = "bpf_sk_storage_map";

/// How many connected sockets of datagrams have lost their servers (Linux 5.9, with BTF).
///
/// # Errors
/// [`Error::Program`], [`Error::Map`], [`Error::Walk`].
pub(super) fn count(ebpf: &mut Ebpf, pins: &Pins) -> Result<u64, Error> {
    let refused = |source| Error::Program {
        program: PROGRAM,
        source: Box::new(source),
    };
    let program: &mut Iter = ebpf
        .program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Missing(PROGRAM))?;
    if program.fd().is_err() {
        let btf = Btf::from_sys_fs().map_err(|error| refused(error.into()))?;
        program.load(ITERATOR, &btf).map_err(refused)?;
    }
    let memory =
        MapData::from_pin(pins.map(CONNECTED)).map_err(failed("open pinned", CONNECTED))?;
    let program = program.fd().map_err(refused)?.as_fd();
    // The program runs for every socket in the memory when the file is read.
    let walk = syscall::iterator(program, memory.fd().as_fd());
    let mut found = Array::<_, u64>::try_from(ebpf.map_mut(FOUND).ok_or(Error::Missing(FOUND))?)
        .map_err(failed("open", FOUND))?;
    found.set(0, 0, 0).map_err(failed("update", FOUND))?;
    walk.and_then(|walk| File::from(walk).read_to_end(&mut Vec::new()))
        .map_err(Error::Walk)?;
    found.get(&0, 0).map_err(failed("read", FOUND))
}
