//! Sockets that are connected: `ov_connect4`, `ov_connect6`, `ov_getpeername4` and its like.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use overlay_common::socket::{Operation, Verdict, choose};

use crate::ALLOW;
use crate::address::Call;
use crate::maps::{CONNECTED, ServiceMaps, count};

#[cgroup_sock_addr(connect4)]
pub fn ov_connect4(ctx: SockAddrContext) -> i32 {
    connect(&Call::v4(&ctx))
}

#[cgroup_sock_addr(connect6)]
pub fn ov_connect6(ctx: SockAddrContext) -> i32 {
    connect(&Call::v6(&ctx))
}

#[cgroup_sock_addr(getpeername4)]
pub fn ov_getpeername4(ctx: SockAddrContext) -> i32 {
    name(&Call::v4(&ctx))
}

#[cgroup_sock_addr(getpeername6)]
pub fn ov_getpeername6(ctx: SockAddrContext) -> i32 {
    name(&Call::v6(&ctx))
}

#[inline(always)]
fn connect(call: &Call<'_>) -> i32 {
    let verdict = match translate(call) {
        Ok(()) => Verdict::Translated,
        Err(verdict) => {
            forget(call);
            verdict
        }
    };
    count(Operation::Connect, verdict);
    ALLOW
}

/// Gives the socket a server instead of the Service.
#[inline(always)]
fn translate(call: &Call<'_>) -> Result<(), Verdict> {
    let frontend = call.frontend(call.transport()?);
    // A connection is always new, whatever the socket was connected to before.
    let mut given = choose(&ServiceMaps, call.client(), &frontend, None)?;
    // SAFETY: the socket of the context, and a value on the stack.
    let storage = unsafe { CONNECTED.get_or_insert_ptr_mut(call.context, Some(&mut given)) };
    if storage.is_null() {
        return Err(Verdict::NoRoom);
    }
    // The socket may have had a translation. SAFETY: the kernel has locked the socket for the call.
    unsafe { *storage = given };
    call.replace(&given.server.address, given.server.port);
    Ok(())
}

/// Notes that the socket is not connected to a Service any more.
#[inline(always)]
fn forget(call: &Call<'_>) {
    // SAFETY: as for `translate`.
    let storage = unsafe { CONNECTED.get_ptr_mut(call.context) };
    if !storage.is_null() {
        // SAFETY: as above.
        unsafe { (*storage).set = 0 };
    }
}

#[inline(always)]
fn name(call: &Call<'_>) -> i32 {
    let verdict = if say_service(call) {
        Verdict::Named
    } else {
        Verdict::NotService
    };
    count(Operation::Name, verdict);
    ALLOW
}

/// Returns the Service's address to a call that has the address of the socket's server.
#[inline(always)]
pub fn say_service(call: &Call<'_>) -> bool {
    // SAFETY: the socket of the context; locked for the call.
    let Some(given) = (unsafe { CONNECTED.get_ptr_mut(call.context).as_ref() }) else {
        return false;
    };
    let is_servers = given.set != 0 && given.server.is(&call.address());
    if is_servers {
        call.replace(&given.frontend.address, given.frontend.port);
    }
    is_servers
}
