//! Where things lie in the repository.

use std::path::{Path, PathBuf};

/// The repository's root directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Where cargo builds everything but the eBPF programs.
pub fn target() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    chosen.unwrap_or_else(|| root().join("target"))
}

/// Where the eBPF programs are built, in the repository. The agent's build script looks for
/// [`bpf_object`] at this place, so it does not move with `CARGO_TARGET_DIR`.
pub const BPF_TARGET: &str = "target/bpf";

/// The eBPF programs as one object file, ready to be embedded in the agent.
pub fn bpf_object() -> PathBuf {
    root().join(BPF_TARGET).join("overlay.bpf.o")
}
