//! Paths in the repository.

use std::path::{Path, PathBuf};

/// The repository's root directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// The directory of cargo's builds, except those of the eBPF programs.
pub fn target() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    chosen.unwrap_or_else(|| root().join("target"))
}

/// The directory of the eBPF programs, in the repository. The agent's build script looks for
/// [`bpf_object`] at this path, so the directory does not move with `CARGO_TARGET_DIR`.
pub const BPF_TARGET: &str = "target/bpf";

/// The eBPF programs as one object file, ready to be embedded in the agent.
pub fn bpf_object() -> PathBuf {
    root().join(BPF_TARGET).join("overlay.bpf.o")
}
