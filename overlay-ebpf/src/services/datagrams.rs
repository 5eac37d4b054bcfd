//! Datagrams to and from addresses: `ov_sendmsg4`, `ov_sendmsg6`, `ov_recvmsg4`, `ov_recvmsg6`.

use core::hint::black_box;

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use overlay_common::socket::{
    Operation, Server, SocketTables as _, Translation, Translations, Verdict, choose, note,
    place_for, place_of,
};

use crate::ALLOW;
use crate::address::Call;
use crate::connected::say_service;
use crate::maps::{ServiceMaps, UNCONNECTED, count};

#[cgroup_sock_addr(sendmsg4)]
pub fn ov_sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&Call::v4(&ctx))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn ov_sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&Call::v6(&ctx))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn ov_recvmsg4(ctx: SockAddrContext) -> i32 {
    receive(&Call::v4(&ctx))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn ov_recvmsg6(ctx: SockAddrContext) -> i32 {
    receive(&Call::v6(&ctx))
}

#[inline(always)]
fn send(call: &Call<'_>) -> i32 {
    let verdict = match translate(call) {
        Ok(()) => Verdict::Translated,
        Err(verdict) => verdict,
    };
    count(Operation::Send, verdict);
    ALLOW
}

/// Gives the datagram a server instead of the Service: the socket's former server, while that one
/// serves.
#[inline(always)]
fn translate(call: &Call<'_>) -> Result<(), Verdict> {
    let frontend = call.frontend(call.transport()?);
    // SAFETY: the socket of the context; locked for the call.
    let mut table = unsafe { UNCONNECTED.get_ptr_mut(call.context) };
    if table.is_null() {
        // Most sockets never ask for a Service, and so get no table.
        ServiceMaps.service(&frontend).ok_or(Verdict::NotService)?;
        // SAFETY: as above.
        table = unsafe { UNCONNECTED.get_or_insert_ptr_mut(call.context, None) };
    }
    // SAFETY: as above.
    let table = unsafe { table.as_mut() }.ok_or(Verdict::NoRoom)?;
    let place = forgotten(place_for(table, &frontend), frontend.port);
    let former = table.all.get(place).filter(|known| known.set != 0);
    match choose(&ServiceMaps, call.client(), &frontend, former) {
        Ok(given) => {
            note(table, place, given)?;
            call.replace(&given.server.address, given.server.port);
            Ok(())
        }
        Err(verdict) => {
            if verdict == Verdict::NotService {
                forget(table, &call.address());
            }
            Err(verdict)
        }
    }
}

/// Hides from the verifier that the place is one of nine constants, because the verifier would
/// check the rest of the program for each of them. `any` is a number that the verifier does not
/// know.
#[inline(always)]
fn forgotten(place: usize, any: u16) -> usize {
    let any = usize::from(any);
    black_box(place ^ any) ^ any
}

/// The socket talks to a server directly, so that answers must keep the server's address.
#[inline(always)]
fn forget(table: &mut Translations, server: &Server) {
    let place = place_of(table, server);
    if let Some(Translation { set, .. }) = table.all.get_mut(place) {
        *set = 0;
    }
}

#[inline(always)]
fn receive(call: &Call<'_>) -> i32 {
    let verdict = if say_service(call) || say_service_of_datagram(call) {
        Verdict::Named
    } else {
        Verdict::NotService
    };
    count(Operation::Receive, verdict);
    ALLOW
}

/// Replaces the address of a server that the socket talks to by the Service's address.
#[inline(always)]
fn say_service_of_datagram(call: &Call<'_>) -> bool {
    // SAFETY: the socket of the context; locked for the call.
    let Some(table) = (unsafe { UNCONNECTED.get_ptr_mut(call.context).as_ref() }) else {
        return false;
    };
    let place = place_of(table, &call.address());
    let Some(given) = table.all.get(place) else {
        return false;
    };
    call.replace(&given.frontend.address, given.frontend.port);
    true
}
