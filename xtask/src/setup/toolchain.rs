//! The compiler and linker for eBPF: Debian's own packages, or rustup's nightly.

use std::fmt;
use std::path::Path;
use std::process::Command;

use crate::shell;

/// Debian's compiler, which has the BPF target as a package.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Debian's cargo.
pub const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// The linker, for either compiler.
pub const LINKER: &str = "bpf-linker";

/// A compiler that builds for the BPF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// `rustc-web` with `libstd-rust-web-dev-bpf`: `core` is precompiled.
    Debian {
        /// Release of the compiler.
        version: String,
    },
    /// rustup's nightly with `rust-src`: `core` is compiled with the programs.
    Rustup {
        /// Release of the compiler.
        version: String,
    },
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { version } => write!(f, "Debian's rustc {version} with its BPF core"),
            Self::Rustup { version } => write!(f, "rustup's rustc {version} with rust-src"),
        }
    }
}

/// The missing part of the toolchain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// No compiler has the BPF target.
    Compiler,
    /// There is a compiler, but no linker.
    Linker,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compiler => {
                "no Rust compiler for the BPF target (rustc-web with libstd-rust-web-dev-bpf, \
                 or rustup's nightly with rust-src)"
            }
            Self::Linker => "no bpf-linker",
        })
    }
}

/// Finds the toolchain; Debian's is preferred, because its `core` need not be built.
pub fn find() -> Result<Toolchain, Lack> {
    let compiler = debian().or_else(rustup).ok_or(Lack::Compiler)?;
    if shell::find(LINKER).is_none() {
        return Err(Lack::Linker);
    }
    Ok(compiler)
}

/// Debian's compiler, if it has the BPF target.
pub fn debian() -> Option<Toolchain> {
    if !Path::new(DEBIAN_CARGO).exists() {
        return None;
    }
    let sysroot = answer(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))?;
    let target = Path::new(sysroot.trim()).join("lib/rustlib/bpfel-unknown-none/lib");
    if !target.is_dir() {
        return None;
    }
    let version = field(&about_debian()?, "release")?;
    Some(Toolchain::Debian { version })
}

/// rustup's nightly, if it has the sources of `core`.
fn rustup() -> Option<Toolchain> {
    let sysroot = answer(Command::new("rustc").args(["+nightly", "--print", "sysroot"]))?;
    if !Path::new(sysroot.trim())
        .join("lib/rustlib/src/rust/library/core")
        .is_dir()
    {
        return None;
    }
    let about = answer(Command::new("rustc").args(["+nightly", "-vV"]))?;
    Some(Toolchain::Rustup {
        version: field(&about, "release")?,
    })
}

/// Major version of the LLVM in Debian's compiler, which the linker must match.
pub fn debian_llvm() -> Option<String> {
    let version = field(&about_debian()?, "LLVM version")?;
    Some(version.split('.').next()?.to_owned())
}

fn about_debian() -> Option<String> {
    answer(Command::new(DEBIAN_RUSTC).arg("-vV"))
}

/// The output of a program, if the program exists and succeeds.
fn answer(command: &mut Command) -> Option<String> {
    // The cargo that runs us has set these variables for its own toolchain.
    command
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RUSTUP_TOOLCHAIN");
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// A `name: value` line of `rustc -vV`.
fn field(about: &str, name: &str) -> Option<String> {
    about
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_rustc_are_found() {
        let about = "rustc 1.96.0\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(field(about, "release").as_deref(), Some("1.96.0"));
        assert_eq!(field(about, "LLVM version").as_deref(), Some("22.1.8"));
        assert_eq!(field(about, "host"), None);
    }
}
