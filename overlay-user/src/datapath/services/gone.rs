//! Finding out whether connected sockets are left whose servers have gone.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use aya::maps::{Array, MapData};
use aya::programs::Iter;
use aya::{Btf, Ebpf};
use nix::libc;

use super::{CONNECTED, Pins};
use crate::datapath::Error;
use crate::datapath::maps::failed;

/// The program that looks at a socket.
const PROGRAM: &str = "ov_find_gone";
/// Where it counts.
const FOUND: &str = "ov_found_gone";
/// What it walks over, as the kernel calls it.
const ITERATOR: &str = "bpf_sk_storage_map";

/// Commands of `enum bpf_cmd`, and the hook of `enum bpf_attach_type` (include/uapi/linux/bpf.h).
const LINK_CREATE: libc::c_int = 28;
const ITER_CREATE: libc::c_int = 33;
const TRACE_ITER: u32 = 28;

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
    let walk = walk(program.fd().map_err(refused)?.as_fd(), memory.fd().as_fd());
    let mut found = Array::<_, u64>::try_from(ebpf.map_mut(FOUND).ok_or(Error::Missing(FOUND))?)
        .map_err(failed("open", FOUND))?;
    found.set(0, 0, 0).map_err(failed("update", FOUND))?;
    walk.and_then(|mut walk| walk.read_to_end(&mut Vec::new()))
        .map_err(Error::Walk)?;
    found.get(&0, 0).map_err(failed("read", FOUND))
}

/// A file that runs the program for every socket in the memory when it is read.
#[expect(unsafe_code, reason = "aya has no iterators over one map")]
fn walk(program: impl AsFd, memory: impl AsFd) -> io::Result<File> {
    let number = |fd: &dyn AsFd| fd.as_fd().as_raw_fd().cast_unsigned();
    // `union bpf_iter_link_info`, and the member `link_create` of `union bpf_attr`.
    let info = [number(&memory), 0, 0, 0];
    let mut link = LinkCreate {
        program: number(&program),
        target: 0,
        kind: TRACE_ITER,
        flags: 0,
        info: info.as_ptr() as u64,
        info_len: size_of_val(&info) as u32,
        _pad: 0,
    };
    // SAFETY: the kernel reads as much of the struct, and of what it points to, as it is told.
    let link = unsafe { made(LINK_CREATE, (&raw mut link).cast(), size_of::<LinkCreate>()) }?;
    let mut iterator = [number(&link), 0];
    // SAFETY: as above.
    let iterator = unsafe {
        made(
            ITER_CREATE,
            iterator.as_mut_ptr().cast(),
            size_of_val(&iterator),
        )
    };
    iterator.map(File::from)
}

/// See [`walk`].
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    kind: u32,
    flags: u32,
    /// A pointer.
    info: u64,
    info_len: u32,
    _pad: u32,
}

/// A descriptor that bpf(2) makes.
///
/// # Safety
/// `attributes` are as many bytes as `length` says, as the command wants them.
#[expect(unsafe_code, reason = "see walk")]
unsafe fn made(
    command: libc::c_int,
    attributes: *mut libc::c_void,
    length: usize,
) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, length) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no other code has the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
