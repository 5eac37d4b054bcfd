//! The agent's pinned maps, opened from outside of the node.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use overlay_tests::Namespace;
use overlay_tests::pins::MAPS;

/// The pin of a map.
pub fn path(map: &str) -> PathBuf {
    format!("{MAPS}/{map}").into()
}

/// Opens a hash map of a node; `None` where no agent has pinned the map yet.
pub fn open<K: Pod, V: Pod>(node: &Namespace, map: &str) -> Result<Option<HashMap<MapData, K, V>>> {
    let path = path(map);
    let opened = node.inside(|| path.exists().then(|| MapData::from_pin(&path)))?;
    let map = opened.map(|data| {
        data.and_then(Map::from_map_data)
            .and_then(HashMap::try_from)
    });
    map.transpose()
        .with_context(|| format!("open {}", path.display()))
}
