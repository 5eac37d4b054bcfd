//! `cargo xtask image`: the overlay as a container image.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use overlay_tests::image::{Image, OVERLAY_LAYER};

use crate::{build, dist, setup, shell, workspace};

/// The name in the manifests, as completed by container runtimes.
const NAME: &str = "docker.io/library/overlay:latest";
const MIB: f64 = 1024.0 * 1024.0;

/// Write the container image of the overlay as an OCI archive, without a daemon.
///
/// It holds overlayd, overlayctl and overlay-cni, also under the paths that flannel's images have,
/// iptables in both variants, nft, what these load, and a shell. The same programs make the same
/// bytes. Beside the archive its files are written for deploy/Dockerfile.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask image
  ctr --namespace k8s.io image import target/overlay-image.tar
  cargo xtask image --name registry.example/overlay:1.0 && \\
    skopeo copy oci-archive:target/overlay-image.tar docker://registry.example/overlay:1.0")]
pub struct Arguments {
    /// The image's full name with a tag.
    #[arg(long, default_value = NAME)]
    name: String,
    /// Where to write it; target/overlay-image.tar unless given.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Take the programs in target/debug, which are larger and slower and built more quickly.
    #[arg(long)]
    debug: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure_cluster()?;
    build::programs(build::Warnings::Shown)?;
    build::binaries(!arguments.debug)?;
    let built = if arguments.debug {
        "debug"
    } else {
        dist::strip()?;
        "dist"
    };
    let default = || workspace::target().join("overlay-image.tar");
    let output = arguments.output.clone().unwrap_or_else(default);
    shell::progress("image");
    let image = Image::overlay(&arguments.name, &workspace::target().join(built), 9)?;
    // This file is for deploy/Dockerfile.
    let layer = output.with_file_name(OVERLAY_LAYER);
    fs::write(&layer, image.tree.archive()?)
        .with_context(|| format!("write {}", layer.display()))?;
    let size = image
        .write(&output)
        .with_context(|| format!("write {}", output.display()))?;
    println!(
        "{}: {}, {:.1} MiB compressed, {:.1} MiB unpacked",
        output.display(),
        arguments.name,
        mib(size.compressed),
        mib(size.unpacked)
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}
