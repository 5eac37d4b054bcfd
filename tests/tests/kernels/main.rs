//! What must hold on every kernel, whatever it has. `cargo xtask vmtest` runs these in virtual
//! machines; each knows what to expect of the kernel that it finds itself on.

mod kernel;
mod lab;
mod probes;
mod programs;
mod underlays;
mod virtio;
