//! The ids of the programs on a tcx hook or a control group. aya opens every program that it lists,
//! and opening needs `CAP_SYS_ADMIN`, which is as much as root. Reading the ids alone needs
//! `CAP_NET_ADMIN`.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya::programs::TcAttachType;

use super::syscall::program_ids;

/// The hooks of `enum bpf_attach_type` (include/uapi/linux/bpf.h).
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// The ids of the programs on a device's tcx hook, in their order of execution.
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

/// The ids of the programs that are attached to a control group itself, in their order of
/// execution; `attach_type` is of `enum bpf_attach_type`.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`, `EINVAL` for a hook that the kernel lacks.
pub(super) fn group_program_ids(group: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    program_ids(group.as_raw_fd().cast_unsigned(), attach_type)
}
