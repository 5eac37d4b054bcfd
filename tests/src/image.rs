//! Container images, written without a daemon: an archive in the layout of the Open Container
//! Initiative (image-spec v1.0.2), with one layer. Equal contents give equal bytes.

mod contents;
mod tree;
mod upstream;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use contents::{ENTRYPOINT, PATH, probe, shared_libraries};
pub use tree::Tree;
pub use upstream::{agnhost, dns_utils};

/// Name of the file with the overlay's files alone, for deploy/Dockerfile.
pub const OVERLAY_LAYER: &str = "overlay-image.layer.tar";
/// The media types of an image's parts.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image to be written.
pub struct Image<'a> {
    /// The image's full name: registry, path and tag.
    pub name: &'a str,
    /// Its files.
    pub tree: Tree,
    /// The program that runs by default.
    pub entrypoint: &'a [&'a str],
    /// The program's default arguments.
    pub arguments: &'a [&'a str],
    /// The program's PATH.
    pub path: &'a str,
    /// Level of compression, from 0 (quick) to 9 (small).
    pub compression: u32,
}

/// The size of a written image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Size of all files together, in bytes.
    pub unpacked: u64,
    /// Size in a registry and in a download, in bytes.
    pub compressed: u64,
}

/// A part of an image, found by its digest.
struct Blob {
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        Self {
            digest: hex(&content),
            content,
        }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    /// The part's descriptor in other parts.
    fn descriptor(&self, kind: &str) -> Value {
        json!({
            "mediaType": kind,
            "digest": format!("sha256:{}", self.digest),
            "size": self.content.len(),
        })
    }
}

impl<'a> Image<'a> {
    /// The overlay, with the programs in `bin_dir`.
    ///
    /// # Errors
    /// When a program or a library is missing.
    pub fn overlay(name: &'a str, bin_dir: &Path, compression: u32) -> Result<Self> {
        Ok(Self {
            name,
            tree: contents::overlay(bin_dir)?,
            entrypoint: &[contents::ENTRYPOINT],
            arguments: &[],
            path: contents::PATH,
            compression,
        })
    }

    /// Writes [`archive`](Self::archive) to a file.
    ///
    /// # Errors
    /// When the file cannot be created or written.
    pub fn write(&self, path: &Path) -> Result<Size> {
        let (archive, size) = self.archive()?;
        fs::write(path, archive).with_context(|| format!("write {}", path.display()))?;
        Ok(size)
    }

    /// The archive, which `ctr image import`, `skopeo` and others read.
    ///
    /// # Errors
    /// When a file does not fit in a tar archive.
    pub fn archive(&self) -> Result<(Vec<u8>, Size)> {
        let layer = self.tree.archive()?;
        let unpacked = u64::try_from(layer.len()).context("a layer's length")?;
        let diff_id = hex(&layer);
        // gzip's header gets neither a name nor a time.
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(self.compression));
        gzip.write_all(&layer).context("compress a layer")?;
        let layer = Blob::new(gzip.finish().context("compress a layer")?);
        let config = Blob::json(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.arguments,
                "Env": [format!("PATH={}", self.path)],
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
        }));
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER)],
        }));
        let mut listed = manifest.descriptor(MANIFEST);
        let (_, tag) = self.name.rsplit_once(':').context("a name with a tag")?;
        // The first name is the standard's, the second the one that containerd reads.
        listed["annotations"] = json!({
            "org.opencontainers.image.ref.name": tag,
            "io.containerd.image.name": self.name,
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed]});

        let blobs = [layer, config, manifest];
        let compressed = blobs.iter().map(|blob| blob.content.len()).sum::<usize>();
        let mut archive = Tree::default();
        archive.file(
            "oci-layout",
            json!({"imageLayoutVersion": "1.0.0"}).to_string(),
        )?;
        archive.file("index.json", index.to_string())?;
        for blob in blobs {
            archive.file(format!("blobs/sha256/{}", blob.digest), blob.content)?;
        }
        let size = Size {
            unpacked,
            compressed: u64::try_from(compressed).context("an image's length")?,
        };
        Ok((archive.archive()?, size))
    }
}

fn hex(content: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(content) {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// This machine's architecture, in the form that registries use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str) -> Vec<u8> {
        let mut tree = Tree::default();
        tree.program("bin/one", b"#!/bin/sh\n".to_vec()).unwrap();
        tree.link("sh", "bin/one").unwrap();
        let image = Image {
            name: "localhost/one:1",
            tree,
            entrypoint: &["/sh"],
            arguments: &[],
            path: "/bin",
            compression: 9,
        };
        let path = std::env::temp_dir().join(format!("overlay-{}-{name}", std::process::id()));
        let size = image.write(&path).unwrap();
        assert!(size.compressed > 0 && size.compressed < size.unpacked);
        let archive = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        archive
    }

    #[test]
    fn the_same_content_makes_the_same_bytes() {
        assert_eq!(written("a"), written("b"));
    }

    #[test]
    fn every_part_is_there_under_its_digest() {
        let archive = written("c");
        let mut parts = 0;
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            use std::io::Read as _;
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if let Some(digest) = path.strip_prefix("blobs/sha256/")
                && !digest.is_empty()
            {
                assert_eq!(hex(&content), digest);
                parts += 1;
            }
        }
        assert_eq!(parts, 3);
    }
}
