//! The programs at the socket: they give a socket that asks for a Service one of its servers, so
//! that its packets are plain ones from the first on.
//!
//! An object of its own: a kernel that does not take it still gets the packet programs. Each
//! program is thin, as those are: it fetches what the decision asks for
//! ([`overlay_common::socket`]), carries out what the decision says, and counts the verdict. A
//! program for IPv6 also sees IPv4 in its mapped form, of sockets that serve both families.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "helpers of the kernel, the socket's context and values of maps are raw pointers"
)]

mod address;
mod connected;
mod datagrams;
mod gone;
mod maps;

/// The kernel gives some helpers to programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Lets the system call go on.
const ALLOW: i32 = 1;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could come here.
    loop {}
}
