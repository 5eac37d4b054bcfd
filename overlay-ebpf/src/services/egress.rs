//! `ov_server_gone`: tells connected sockets whose server has gone.
//!
//! sendmsg runs no program for a datagram without an address, so this one looks at packets. The
//! agent attaches it while there may be such sockets. A refused packet is an error of the system
//! call that sends it (`EPERM`), and the socket's owner connects anew. That needs neither the
//! network namespace of the pod, which only `CAP_SYS_ADMIN` may enter, nor a list of sockets.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::{bpf_sk_fullsock, bpf_sk_storage_get};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use overlay_common::socket::{Operation, Translation, UDP, Verdict, is_kept};

use crate::ALLOW;
use crate::maps::{CONNECTED, Maps, count};

/// Refuses the packet.
const REFUSE: i32 = 0;

#[cgroup_skb(egress)]
pub fn ov_server_gone(ctx: SkBuffContext) -> i32 {
    let Some(given) = given(&ctx) else {
        return ALLOW;
    };
    if given.set == 0 || given.frontend.transport != UDP || is_kept(&Maps, given) {
        count(Operation::Egress, Verdict::Passed);
        return ALLOW;
    }
    count(Operation::Egress, Verdict::ServerGone);
    REFUSE
}

/// What the socket of the packet was given when it connected.
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
    // SAFETY: as above; nothing is made, and what is there lives as long as the socket.
    unsafe {
        bpf_sk_storage_get(map, socket.cast(), nothing, 0)
            .cast::<Translation>()
            .as_ref()
    }
}
