//! containerd 2, whose CRI plugin calls STATUS of network plugins; Debian 12 has containerd 1.6.
//!
//! The package of a later Debian is unpacked below target, and never installed.

use std::fs;

use anyhow::{Context, Result};

use crate::apt::{Apt, Suite};
use crate::{shell, workspace};

const CACHE: &str = "target/containerd";
/// Debian 14, the first with containerd 2.
const SUITE: Suite = Suite::Main("forky");
const PACKAGE: &str = "containerd";

/// Unpacks containerd 2 at the first call.
pub fn ensure() -> Result<()> {
    let cache = workspace::root().join(CACHE);
    let root = cache.join("root");
    if root.is_dir() {
        return Ok(());
    }
    let apt = Apt::new(&cache.join("apt"), &[SUITE])?;
    shell::progress(&format!("containerd {}", apt.version(PACKAGE)?));
    let new = cache.join("new");
    let _ = fs::remove_dir_all(&new);
    apt.unpack(&[PACKAGE.to_owned()], &new)?;
    fs::rename(&new, &root).with_context(|| format!("rename {}", new.display()))
}
