//! `kubectl apply -k` and `kubectl apply -f` send the same objects; the test needs no cluster.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::command::require_success;
use overlay_tests::kubernetes::bin_dir;
use serde_json::Value;

const MANIFEST: &str = include_str!("../../../deploy/kube-overlay.yml");

/// The objects of a manifest in a fixed order, because kustomize changes the order.
fn objects(yaml: &str) -> Result<Vec<Value>> {
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    objects.sort_by_key(|it| format!("{} {}", it["kind"], it["metadata"]["name"]));
    Ok(objects)
}

#[test]
fn the_kustomization_is_the_manifest() -> Result<()> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let mut kubectl = Command::new(bin_dir().join("kubectl"));
    let output = kubectl.arg("kustomize").arg(&base).output();
    let output = require_success("kubectl kustomize", output.context("start kubectl")?)?;
    let built = objects(std::str::from_utf8(&output.stdout)?)?;
    let wanted = objects(MANIFEST)?;
    ensure!(
        built.len() == wanted.len() && !built.is_empty(),
        "{built:#?}"
    );
    for (built, wanted) in built.iter().zip(&wanted) {
        ensure!(built == wanted, "{built}\ninstead of\n{wanted}");
    }
    Ok(())
}
