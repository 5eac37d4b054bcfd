//! The programs at the socket: they give a socket that asks for a Service one of the Service's
//! servers, so that the socket's packets are plain from the first one on.
//!
//! The programs have an object of their own, so that a kernel which refuses them still gets the
//! packet programs. Each program is thin, like those: it reads the data that the decision needs
//! ([`overlay_common::socket`]), carries out the decision, and counts the verdict. A program for
//! IPv6 also sees IPv4 in its mapped form, of sockets that serve both families.
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

/// The kernel offers some helpers to programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Lets the system call continue.
const ALLOW: i32 = 1;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // This code is unreachable, because the verifier refuses a program that could come here.
    loop {}
}
