//! The images that every node has.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::image::{self, Image};

/// The overlay, under the manifests' name (`overlay:latest`), as completed by containerd.
pub const OVERLAY_IMAGE: &str = "docker.io/library/overlay:latest";
/// The name of an image to upgrade to.
const NEXT_IMAGE: &str = "docker.io/library/overlay:v2";
/// A file that only the image to upgrade to has.
pub const NEXT_FILE: &str = "etc/next";
/// The image of tests' pods, and of the sandbox of every pod.
pub const PROBE_IMAGE: &str = "localhost/overlay-probe:lab";
/// The command of a sandbox and of a pod without a command: sleep for a long time.
pub(super) const SLEEP: &[&str] = &["/bin/sleep", "2147483647"];

/// An image's file name and archive.
type Archive = (&'static str, Vec<u8>);
/// The images that were made last, with the directory of their programs: the programs do not change
/// while tests run, and making the images takes seconds.
static MADE: Mutex<Option<(PathBuf, [Archive; 2])>> = Mutex::new(None);

/// Writes both images as archives.
pub(super) fn write(directory: &Path, bin_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let archives = match &mut *made {
        Some((of, archives)) if of == bin_dir => archives,
        made => &mut made.insert((bin_dir.to_owned(), make(bin_dir)?)).1,
    };
    let write = |(name, content): &Archive| {
        let archive = directory.join(name);
        fs::write(&archive, content).with_context(|| format!("write {}", archive.display()))?;
        Ok(archive)
    };
    archives.iter().map(write).collect()
}

/// Writes an image of the overlay with other bytes under another tag.
pub(super) fn write_next(directory: &Path, bin_dir: &Path) -> Result<PathBuf> {
    let mut image = Image::overlay(NEXT_IMAGE, bin_dir, 1)?;
    image.tree.file(NEXT_FILE, "next\n")?;
    let archive = directory.join("next.tar");
    image.write(&archive)?;
    Ok(archive)
}

fn make(bin_dir: &Path) -> Result<[Archive; 2]> {
    let overlay = Image::overlay(OVERLAY_IMAGE, bin_dir, 1)?;
    let probe = Image {
        name: PROBE_IMAGE,
        tree: image::probe()?,
        entrypoint: SLEEP,
        arguments: &[],
        path: image::PATH,
        compression: 1,
    };
    Ok([
        ("overlay.tar", overlay.archive()?.0),
        ("probe.tar", probe.archive()?.0),
    ])
}
