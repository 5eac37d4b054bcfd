//! The images that every node has.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::image::{self, Image};

/// The overlay, under the name that the manifests say (`overlay:latest`) as containerd completes
/// it.
pub const OVERLAY_IMAGE: &str = "docker.io/library/overlay:latest";
/// What pods of tests run, and the sandbox of every pod.
pub const PROBE_IMAGE: &str = "localhost/overlay-probe:lab";
/// What a sandbox and a pod without a command do: nothing, for long.
pub(super) const SLEEP: &[&str] = &["/bin/sleep", "2147483647"];

/// Writes both as archives.
pub(super) fn write(directory: &Path, bin_dir: &Path) -> Result<Vec<PathBuf>> {
    let overlay = Image::overlay(OVERLAY_IMAGE, bin_dir, 1)?;
    let probe = Image {
        name: PROBE_IMAGE,
        tree: image::probe()?,
        entrypoint: SLEEP,
        arguments: &[],
        path: image::PATH,
        compression: 1,
    };
    let mut archives = Vec::new();
    for (image, name) in [(overlay, "overlay.tar"), (probe, "probe.tar")] {
        let archive = directory.join(name);
        image.write(&archive)?;
        archives.push(archive);
    }
    Ok(archives)
}
