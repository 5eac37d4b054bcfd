//! The overlay's own manifest, as it is deployed.

use anyhow::Result;

use super::Cluster;

const MANIFEST: &str = include_str!("../../../deploy/daemonset.yaml");

impl Cluster {
    /// Applies the overlay's manifest, changed in what a lab cannot have.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply_overlay(&self) -> Result<()> {
        let endpoints = self.lab().store_endpoint();
        self.apply(
            &MANIFEST
                .replace("http://127.0.0.1:2379", &endpoints)
                .replace(", SYS_RESOURCE", ""),
        )
    }
}
