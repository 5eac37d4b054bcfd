//! The image of the overlay, written twice from the same programs: those of the debug build, which
//! are larger than a release's. Clusters of the tests run this image (`kubernetes`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use overlay_tests::Options;
use overlay_tests::image::{Image, OVERLAY_LAYER};
use overlay_tests::kubernetes::OVERLAY_IMAGE;
use serde_json::Value;
use tar::{Archive, Entry, EntryType};

/// Largest download of a node, in bytes.
const MOST: u64 = 40 * 1024 * 1024;
const DOCKERFILE: &str = include_str!("../../deploy/Dockerfile");
/// The programs of both flannel images, which flannel's manifests and tests call.
const FLANNELS: [&str; 9] = [
    "opt/bin/flanneld",
    "opt/bin/install-conf",
    "opt/bin/mk-docker-opts.sh",
    "flannel",
    "bin/sh",
    "bin/cp",
    "bin/ip",
    "bin/ping",
    "usr/sbin/iptables",
];

#[test]
fn the_same_programs_make_the_same_small_image() -> Result<()> {
    let directory = tempfile::tempdir().context("make a directory")?;
    let [one, other] = ["one.tar", "other.tar"].map(|name| directory.path().join(name));
    for path in [&one, &other] {
        // The compression is low, so that a release's image is smaller still.
        Image::overlay(OVERLAY_IMAGE, &Options::default().bin_dir, 1)?.write(path)?;
    }
    ensure!(fs::read(&one)? == fs::read(&other)?, "two images differ");
    let size = fs::metadata(&one)?.len();
    println!("{} KiB", size / 1024);
    ensure!(size < MOST, "{size} bytes");
    has_what_flannels_have(&one)
}

/// Every path is a program, or a link to one.
fn has_what_flannels_have(archive: &Path) -> Result<()> {
    let parts = parts(File::open(archive)?)?;
    let layer = GzDecoder::new(layer_of(&parts)?.as_slice());
    let files: BTreeMap<String, Kind> = entries(layer, |file, name| {
        let target = file
            .link_name()?
            .map(|to| to.to_string_lossy().into_owned());
        let is_program =
            file.header().entry_type() == EntryType::Regular && file.header().mode()? & 0o111 != 0;
        Ok((name, Kind { target, is_program }))
    })?;
    for path in FLANNELS {
        let mut at = path.to_owned();
        while let Some(target) = files.get(&at).and_then(|file| file.target.clone()) {
            let beside = Path::new(&at).with_file_name(&target);
            let absolute = target.strip_prefix('/').map(ToOwned::to_owned);
            at = absolute.unwrap_or_else(|| beside.to_string_lossy().into_owned());
        }
        let leads = files.get(&at).is_some_and(|file| file.is_program);
        ensure!(leads, "{path} leads to {at}, which is no program");
    }
    Ok(())
}

/// The files of an image's archive.
fn parts(archive: impl std::io::Read) -> Result<BTreeMap<String, Vec<u8>>> {
    entries(archive, |mut part, name| {
        let mut content = Vec::new();
        part.read_to_end(&mut content)?;
        Ok((name, content))
    })
}

/// The compressed layer among them.
fn layer_of(parts: &BTreeMap<String, Vec<u8>>) -> Result<&Vec<u8>> {
    let part = |digest: &Value| -> Result<&Vec<u8>> {
        let digest = digest.as_str().and_then(|it| it.strip_prefix("sha256:"));
        let name = format!("blobs/sha256/{}", digest.context("no digest")?);
        parts.get(&name).with_context(|| format!("no {name}"))
    };
    let index: Value = serde_json::from_slice(parts.get("index.json").context("no index")?)?;
    let manifest: Value = serde_json::from_slice(part(&index["manifests"][0]["digest"])?)?;
    part(&manifest["layers"][0]["digest"])
}

/// `docker build` with deploy/Dockerfile makes the same image from the files that `cargo xtask
/// image` writes beside its image.
#[test]
fn the_dockerfile_makes_the_same_image() -> Result<()> {
    let image = Image::overlay(OVERLAY_IMAGE, &Options::default().bin_dir, 1)?;
    ensure!(image.arguments.is_empty(), "the Dockerfile has no CMD");
    let entrypoint = serde_json::to_string(image.entrypoint)?;
    let wanted = [
        "FROM scratch".to_owned(),
        format!("ADD target/{OVERLAY_LAYER} /"),
        format!("ENV PATH={}", image.path),
        format!("ENTRYPOINT {entrypoint}"),
    ];
    let steps: Vec<&str> = DOCKERFILE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    ensure!(steps == wanted, "{steps:#?} instead of {wanted:#?}");
    // The content of ADD is the image's layer, to the byte.
    let layer = image.tree.archive()?;
    let (archive, _) = image.archive()?;
    let parts = parts(archive.as_slice())?;
    let mut unpacked = Vec::new();
    GzDecoder::new(layer_of(&parts)?.as_slice()).read_to_end(&mut unpacked)?;
    ensure!(unpacked == layer, "another layer");
    Ok(())
}

/// The kind of a file in the image.
struct Kind {
    /// The target of a link.
    target: Option<String>,
    is_program: bool,
}

/// The results of `read` for every entry of an archive and its path.
fn entries<R: std::io::Read, T>(
    archive: R,
    read: impl Fn(Entry<'_, R>, String) -> Result<(String, T)>,
) -> Result<BTreeMap<String, T>> {
    let mut archive = Archive::new(archive);
    let entries = archive.entries().context("read an archive")?;
    let named = entries.map(|entry| {
        let entry = entry.context("read an archive")?;
        let name = entry.path()?.to_string_lossy().into_owned();
        read(entry, name)
    });
    named.collect()
}
