//! The ids of the programs on a tcx hook or a control group. aya opens every program that it lists,
//! which takes `CAP_SYS_ADMIN`: all of root. The ids alone take `CAP_NET_ADMIN`.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya::programs::TcAttachType;
use nix::libc;

/// `BPF_PROG_QUERY` of `enum bpf_cmd`, and the hooks of `enum bpf_attach_type`
/// (include/uapi/linux/bpf.h).
const PROG_QUERY: libc::c_int = 16;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// As many as a hook takes at most (`BPF_MPROG_MAX`, `BPF_CGROUP_MAX_PROGS`).
const MOST: usize = 64;

/// The member `query` of `union bpf_attr`, up to the last field that the kernel writes: it does so
/// whatever size it is told (`bpf_mprog_query()` of kernel/bpf/mprog.c).
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

/// The ids of the programs on a device's tcx hook, in the order they run.
///
/// # Errors
/// `EINVAL` on a kernel without tcx (before Linux 6.6), `EPERM` without `CAP_NET_ADMIN`, `ENODEV`.
pub(super) fn tcx_program_ids(ifindex: u32, direction: TcAttachType) -> io::Result<Vec<u32>> {
    let attach_type = match direction {
        TcAttachType::Egress => TCX_EGRESS,
        _ => TCX_INGRESS,
    };
    program_ids(ifindex, attach_type)
}

/// The ids of the programs that are attached to a control group itself, in the order they run;
/// `attach_type` is of `enum bpf_attach_type`.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`, `EINVAL` for a hook that the kernel lacks.
pub(super) fn group_program_ids(group: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    program_ids(group.as_raw_fd().cast_unsigned(), attach_type)
}

#[expect(unsafe_code, reason = "aya opens every program that it lists")]
fn program_ids(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MOST];
    let mut query = Query {
        target,
        attach_type,
        program_ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: the kernel reads as much of the struct as it is told, writes no field behind
    // `revision`, and at most `count` ids.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let count = usize::try_from(query.count).unwrap_or(MOST);
    Ok(ids.iter().take(count).copied().collect())
}
