//! The images of Kubernetes' own tests, with Debian's programs instead of Alpine's and of an older
//! Debian's.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::contents::{shared_libraries, shell};
use super::tree::Tree;

/// The shell, and the programs that the tests call in their pods. busybox has some of them, but
/// they differ, and busybox's shell prefers its own ones whatever the PATH.
const CLIENTS: [&str; 9] = [
    "/usr/bin/bash",
    "/usr/bin/curl",
    "/usr/bin/dash",
    "/usr/bin/dig",
    "/usr/bin/getent",
    "/usr/bin/hostname",
    "/usr/bin/nc.openbsd",
    "/usr/bin/nslookup",
    "/usr/bin/ss",
];
const APPLETS: &[&str] = &[
    "awk", "cat", "cp", "cut", "date", "echo", "env", "expr", "grep", "head", "id", "kill", "ls",
    "mkdir", "mv", "printf", "ps", "pwd", "rm", "sed", "seq", "sleep", "sort", "stat", "tail",
    "test", "timeout", "touch", "tr", "true", "uname", "wc", "wget",
];
/// Names are looked up in `/etc/hosts` first, as usual, because the C library would otherwise ask a
/// server.
const NAME_SERVICES: &str = "hosts: files dns\n";

/// The image that most pods of the tests run: upstream's program in `directory`, with its
/// certificate.
///
/// # Errors
/// When a file is missing.
pub fn agnhost(directory: &Path) -> Result<Tree> {
    let mut tree = dns_utils()?;
    tree.copy(&directory.join("agnhost"), "agnhost")?;
    tree.link("agnhost-2", "agnhost")?;
    for name in ["localhost.crt", "localhost.key"] {
        tree.copy(&directory.join(name), name)?;
    }
    tree.directory("/uploads", 0o755)?;
    Ok(tree)
}

/// The image that looks up names with the programs of a Debian.
///
/// # Errors
/// When a program is missing.
pub fn dns_utils() -> Result<Tree> {
    let mut tree = Tree::default();
    shell(&mut tree, APPLETS)?;
    for program in CLIENTS {
        tree.copy(Path::new(program), program)
            .context("install what is missing by `cargo xtask setup`")?;
    }
    tree.link("bin/sh", "/usr/bin/dash")?;
    tree.link("usr/bin/nc", "nc.openbsd")?;
    for library in shared_libraries(&CLIENTS.map(PathBuf::from))? {
        tree.copy(&library, &library)?;
    }
    tree.file("/etc/nsswitch.conf", NAME_SERVICES)?;
    tree.file("/etc/passwd", "root:x:0:0::/:/bin/sh\n")?;
    tree.file("/etc/group", "root:x:0:\n")?;
    tree.directory("/tmp", 0o1777)?;
    Ok(tree)
}
