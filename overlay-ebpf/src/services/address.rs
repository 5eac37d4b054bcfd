//! The address of a system call, in the form that the kernel gives a program.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use overlay_common::socket::{Frontend, Server, TCP, UDP, Verdict, mapped};

/// `AF_INET` and `AF_INET6`.
const INET: u32 = 2;
const INET6: u32 = 10;

/// A system call of a socket, about an address of one family.
pub struct Call<'a> {
    pub context: &'a SockAddrContext,
    is_v6: bool,
}

impl<'a> Call<'a> {
    #[inline(always)]
    pub fn v4(context: &'a SockAddrContext) -> Self {
        Self {
            context,
            is_v6: false,
        }
    }

    #[inline(always)]
    pub fn v6(context: &'a SockAddrContext) -> Self {
        Self {
            context,
            is_v6: true,
        }
    }

    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.context.sock_addr
    }

    /// The transport, or why the programs leave the call alone.
    #[inline(always)]
    pub fn transport(&self) -> Result<u16, Verdict> {
        let family = if self.is_v6 { INET6 } else { INET };
        // SAFETY: fields of the context that every such program may read. Each is read once, in the
        // width that the verifier wants.
        let (user_family, protocol) = unsafe {
            (
                addr_of_mut!((*self.raw()).user_family).read_volatile(),
                addr_of_mut!((*self.raw()).protocol).read_volatile(),
            )
        };
        match protocol as u16 {
            transport @ (TCP | UDP) if user_family == family => Ok(transport),
            _ => Err(Verdict::OtherProtocol),
        }
    }

    /// Address and port.
    #[inline(always)]
    pub fn address(&self) -> Server {
        let raw = self.raw();
        // SAFETY: as for `transport`.
        let port = unsafe { addr_of_mut!((*raw).user_port).read_volatile() };
        let address = if self.is_v6 {
            let mut bytes = [0; 16];
            for (at, word) in bytes.chunks_exact_mut(4).enumerate() {
                // SAFETY: as for `transport`; `at` is 0 to 3.
                let part = unsafe { word_of(raw, at).read_volatile() };
                word.copy_from_slice(&part.to_ne_bytes());
            }
            bytes
        } else {
            // SAFETY: as for `transport`.
            mapped(unsafe { addr_of_mut!((*raw).user_ip4).read_volatile() }.to_ne_bytes())
        };
        Server::new(address, u16::from_be(port as u16))
    }

    /// The frontend that the socket asks for.
    #[inline(always)]
    pub fn frontend(&self, transport: u16) -> Frontend {
        let Server { address, port, .. } = self.address();
        Frontend {
            address,
            port,
            transport,
        }
    }

    /// Replaces the call's address and port.
    #[inline(always)]
    pub fn replace(&self, address: &[u8; 16], port: u16) {
        let raw = self.raw();
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
        let last = u32::from_ne_bytes([m, n, o, p]);
        // SAFETY: fields of the context that programs on these hooks may write, in the width that
        // the verifier wants.
        unsafe {
            if self.is_v6 {
                word_of(raw, 0).write_volatile(u32::from_ne_bytes([a, b, c, d]));
                word_of(raw, 1).write_volatile(u32::from_ne_bytes([e, f, g, h]));
                word_of(raw, 2).write_volatile(u32::from_ne_bytes([i, j, k, l]));
                word_of(raw, 3).write_volatile(last);
            } else {
                addr_of_mut!((*raw).user_ip4).write_volatile(last);
            }
            addr_of_mut!((*raw).user_port).write_volatile(u32::from(port.to_be()));
        }
    }

    /// The cookie of the socket's network namespace (Linux 5.7), which identifies a client for
    /// session affinity.
    #[inline(always)]
    pub fn client(&self) -> u64 {
        // SAFETY: the context of this program.
        unsafe { bpf_get_netns_cookie(self.raw().cast()) }
    }
}

/// A quarter of the IPv6 address.
///
/// # Safety
/// `raw` is the context of a program, and `at` is 0 to 3.
#[inline(always)]
unsafe fn word_of(raw: *mut bpf_sock_addr, at: usize) -> *mut u32 {
    // SAFETY: the caller keeps `at` within the four words of the field.
    unsafe { addr_of_mut!((*raw).user_ip6).cast::<u32>().add(at) }
}
