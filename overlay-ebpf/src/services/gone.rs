//! Connected sockets of datagrams whose servers do not serve any more: `ov_find_gone` finds out
//! whether there are such sockets, `ov_server_gone` notifies them.
//!
//! sendmsg runs no program for a datagram without an address, so `ov_server_gone` looks at packets.
//! The agent attaches this program while there may be such sockets. A refused packet is an error of
//! the system call that sends the packet (`EPERM`), and the socket's owner connects anew. This
//! needs neither the network namespace of the pod, which only a process with `CAP_SYS_ADMIN` may
//! enter, nor a list of sockets.

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::{bpf_sk_fullsock, bpf_sk_storage_get};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use overlay_common::socket::{Operation, Translation, UDP, Verdict, is_kept};

use crate::ALLOW;
use crate::maps::{CONNECTED, ServiceMaps, count, found_gone};

/// Refuses the packet.
const REFUSE: i32 = 0;

#[cgroup_skb(egress)]
pub fn ov_server_gone(ctx: SkBuffContext) -> i32 {
    let Some(given) = given(&ctx) else {
        return ALLOW;
    };
    if !has_lost_its_server(given) {
        count(Operation::Egress, Verdict::Passed);
        return ALLOW;
    }
    count(Operation::Egress, Verdict::ServerGone);
    REFUSE
}

/// The translation that the packet's socket was given when it connected.
#[inline(always)]
fn given(ctx: &SkBuffContext) -> Option<&Translation> {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: a field of the context that every such program may read.
    let socket: *mut bpf_sock = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: the socket of the packet, which the kernel keeps for as long as the program runs.
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return None;
    }
    let map = (&raw const CONNECTED).cast_mut().cast();
    let nothing = core::ptr::null_mut();
    // SAFETY: as above; no storage is created, and an existing one lives as long as the socket.
    unsafe {
        bpf_sk_storage_get(map, socket.cast(), nothing, 0)
            .cast::<Translation>()
            .as_ref()
    }
}

/// Whether the socket is connected to a server of datagrams that does not serve any more.
#[inline(always)]
fn has_lost_its_server(given: &Translation) -> bool {
    given.set != 0 && given.frontend.transport == UDP && !is_kept(&ServiceMaps, given)
}

/// The view that an iterator over socket storage has of a socket: `struct
/// bpf_iter__bpf_sk_storage_map` (net/core/bpf_sk_storage.c).
#[repr(C)]
pub struct Visit {
    meta: *mut c_void,
    map: *mut c_void,
    socket: *mut c_void,
    value: *const Translation,
}

/// The agent runs this over every socket that was given a server when it connected (Linux 5.9).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub fn ov_find_gone(visit: *mut Visit) -> i32 {
    // SAFETY: the context of this program. At the end of the walk there is no socket.
    let value = unsafe { (*visit).value };
    if !value.is_null() {
        // SAFETY: memory of the map, for as long as the program runs.
        let given = unsafe { *value };
        if has_lost_its_server(&given) {
            found_gone();
        }
    }
    0
}
