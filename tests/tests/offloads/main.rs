//! Super-packets, checksums left to the device, and the path's MTU: work that the stack leaves to a
//! later step is still done correctly behind the fast path.

mod big_tcp;
mod forwarding;
mod path_mtu;
mod super_packets;
mod support;
