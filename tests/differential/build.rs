//! Embeds the programs for IPv6 where `cargo xtask build` has put them. Without them the crate
//! still builds, for machines without an eBPF toolchain.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    const NAME: &str = "overlay-ipv6.bpf.o";
    let root = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let object = PathBuf::from(root).join("../../target/bpf").join(NAME);
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).unwrap_or_default();
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(PathBuf::from(out).join(NAME), bytes).expect("writing to OUT_DIR");
}
