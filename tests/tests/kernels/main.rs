//! Conditions that must hold on every kernel, whatever its features. `cargo xtask vmtest` runs
//! these tests in virtual machines; each test knows the expected result on its kernel.

mod kernel;
mod lab;
mod probes;
mod programs;
mod underlays;
mod virtio;
