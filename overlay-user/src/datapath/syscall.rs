//! The system call bpf(2), for commands that aya lacks or does not offer in the needed form.

#![expect(
    unsafe_code,
    reason = "aya opens every program that it lists, reads one entry at a time, and has no \
              iterators over one map"
)]

use std::ffi::c_long;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use aya::Pod as Plain;
use aya::maps::MapData;
use nix::libc;

/// Commands of `enum bpf_cmd`, and the hook of `enum bpf_attach_type` (include/uapi/linux/bpf.h).
const PROG_QUERY: libc::c_int = 16;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const LINK_CREATE: libc::c_int = 28;
const ITER_CREATE: libc::c_int = 33;
const TRACE_ITER: u32 = 28;

/// The most programs that a hook takes (`BPF_MPROG_MAX`, `BPF_CGROUP_MAX_PROGS`).
const MOST: usize = 64;

/// Runs a command.
///
/// # Safety
/// `attributes` is the command's member of `union bpf_attr`, up to the last field that the kernel
/// writes, and its pointers are valid for all reads and writes of the command.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<c_long> {
    let attributes: *mut T = attributes;
    // SAFETY: the caller's promise; the kernel reads no more of the attributes than the given size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Runs a command that creates a descriptor.
///
/// # Safety
/// As for [`bpf`]; the command's result is a new descriptor.
unsafe fn made<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attributes) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: no other code has the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// The member `query` of `union bpf_attr`, up to the last field that the kernel writes, because the
/// kernel writes this field whatever the given size (`bpf_mprog_query()` of kernel/bpf/mprog.c).
#[repr(C)]
#[derive(Default)]
struct Query {
    /// Index of a device, or descriptor of a control group.
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    /// A pointer.
    program_ids: u64,
    count: u32,
    _pad: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

const _: () = assert!(size_of::<Query>() == 64);

/// The ids of the programs on a hook, in their order of execution. `target` is the index of a
/// device or the descriptor of a control group, `attach_type` is of `enum bpf_attach_type`.
///
/// # Errors
/// `EINVAL` for a hook that the kernel lacks, `EPERM` without `CAP_NET_ADMIN`, `ENODEV`.
pub(super) fn program_ids(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MOST];
    let mut query = Query {
        target,
        attach_type,
        program_ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: the kernel writes no field behind `revision`, and at most `count` ids.
    unsafe { bpf(PROG_QUERY, &mut query) }?;
    let count = usize::try_from(query.count).unwrap_or(MOST);
    Ok(ids.iter().take(count).copied().collect())
}

/// The member `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct LookupBatch {
    /// Pointers to the position after the last batch and to that after this one: four bytes each
    /// for a hash map.
    in_batch: u64,
    out_batch: u64,
    /// Pointers to room for `count` keys and values.
    keys: u64,
    values: u64,
    /// Before the call the number of entries that there is room for, after the call the number of
    /// entries found.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<LookupBatch>() == 56);

/// A hash map whose entries are read in batches (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6).
pub(super) struct Batches<'a, K, V> {
    map: &'a MapData,
    most: usize,
    /// The position after the last batch.
    cursor: Option<u32>,
    entries: PhantomData<(K, V)>,
}

/// Keys and values of one batch.
pub(super) struct Batch<K, V> {
    pub keys: Vec<K>,
    pub values: Vec<V>,
    pub is_last: bool,
}

impl<'a, K: Plain, V: Plain> Batches<'a, K, V> {
    /// # Errors
    /// `InvalidInput` for a map of other keys or values.
    pub fn new(map: &'a MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let is_of = |key: u32, value: u32| {
            key as usize == size_of::<K>() && value as usize == size_of::<V>()
        };
        if !is_of(info.key_size(), info.value_size()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            map,
            most: info.max_entries() as usize,
            cursor: None,
            entries: PhantomData,
        })
    }

    /// The capacity of the map.
    pub fn most(&self) -> usize {
        self.most
    }

    /// The next entries, at most `room` of them.
    ///
    /// # Errors
    /// `ENOSPC` where more room is needed, because the kernel does not split a bucket; the next
    /// call reads the same entries again. `EINVAL` before Linux 5.6; `EPERM` without the privileges
    /// for the map.
    pub fn next(&mut self, room: usize) -> io::Result<Batch<K, V>> {
        let mut keys: Vec<K> = Vec::with_capacity(room);
        let mut values: Vec<V> = Vec::with_capacity(room);
        let (from, mut to) = (self.cursor, 0_u32);
        let mut batch = LookupBatch {
            in_batch: from.as_ref().map_or(0, |from| &raw const *from as u64),
            out_batch: &raw mut to as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(room).map_err(io::Error::other)?,
            map_fd: number(self.map.fd().as_fd()),
            ..LookupBatch::default()
        };
        // SAFETY: the kernel writes `to`, `batch.count`, and at most `count` keys and values of
        // the sizes that `new` has compared, for which there is room.
        let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut batch) };
        let is_last = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let found = (batch.count as usize).min(room);
        // SAFETY: the kernel has written `count` keys and values, and any bytes are a value of a
        // `Pod` type.
        unsafe {
            keys.set_len(found);
            values.set_len(found);
        }
        self.cursor = Some(to);
        Ok(Batch {
            keys,
            values,
            is_last,
        })
    }
}

/// The member `link_create` of `union bpf_attr`.
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

/// A file that, when read, runs a program for every entry of a map.
///
/// # Errors
/// `EINVAL` where the program cannot iterate over maps of this type, `EPERM` without privileges.
pub(super) fn iterator(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // `union bpf_iter_link_info`.
    let info = [number(map), 0, 0, 0];
    let mut link = LinkCreate {
        program: number(program),
        target: 0,
        kind: TRACE_ITER,
        flags: 0,
        info: info.as_ptr() as u64,
        info_len: size_of_val(&info) as u32,
        _pad: 0,
    };
    // SAFETY: the kernel reads no more of `info` than the given length; a link is a descriptor.
    let link = unsafe { made(LINK_CREATE, &mut link) }?;
    // The member `iter_create`: a link, and flags.
    let mut iterator = [number(link.as_fd()), 0];
    // SAFETY: the command has no pointers; an iterator is a descriptor.
    unsafe { made(ITER_CREATE, &mut iterator) }
}
