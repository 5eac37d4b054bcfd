//! Super-packets, checksums left to the device, and the path's MTU: what the stack leaves for later
//! still comes out right behind the fast path.

mod big_tcp;
mod forwarding;
mod path_mtu;
mod super_packets;
mod support;
