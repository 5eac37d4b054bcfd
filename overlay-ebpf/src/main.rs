//! The packet programs.
//!
//! The programs are thin: each reads the data that the decision in `overlay-common` needs, calls
//! the decision, carries out its result and counts the verdict. `cargo xtask build` compiles the
//! programs for the BPF target.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "helpers of the kernel, the packet's context and values of maps are raw pointers"
)]

mod decap;
mod disposition;
mod encap;
mod events;
mod forward;
mod maps;
mod net_in;
mod net_xdp;
mod out;
mod pod_in;
mod probe;
mod skb;
mod without;
mod xdp_buff;

/// The kernel offers some helpers to programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // This code is unreachable, because the verifier refuses a program that could come here.
    loop {}
}
