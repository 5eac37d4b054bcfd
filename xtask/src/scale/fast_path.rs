//! The peers in the fast path: the map `ov_peers4`, read entry by entry.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use aya::maps::{HashMap, MapData, MapError};
use overlay_common::V4;
use overlay_common::schema::{PEER_NEXT_HOP, PeerEntry};
use overlay_tests::Namespace;

use super::leases::Invented;
use super::pinned;

const MAP: &str = "ov_peers4";

/// The pinned map of one node.
pub struct PeersMap(HashMap<MapData, [u8; 4], PeerEntry<V4>>);

impl PeersMap {
    /// Opens the map of a node; `None` where no agent has pinned the map yet.
    pub fn open(node: &Namespace) -> Result<Option<Self>> {
        Ok(pinned::open(node, MAP)?.map(Self))
    }

    /// The number of peers in the map.
    pub fn len(&self) -> Result<usize> {
        let mut count = 0;
        for key in self.0.keys() {
            key.with_context(|| format!("list the keys of {MAP}"))?;
            count += 1;
        }
        Ok(count)
    }

    /// Whether the map has a peer's entry.
    pub fn has(&self, peer: Invented) -> Result<bool> {
        let entry = self.entry(peer.subnet())?;
        Ok(entry.is_some_and(|entry| entry.vtep == peer.vtep().octets()))
    }

    /// Whether the map lacks a peer's entry.
    pub fn lacks(&self, peer: Invented) -> Result<bool> {
        Ok(self.entry(peer.subnet())?.is_none())
    }

    /// Whether packets to a peer leave with this MAC address of the next hop.
    pub fn leads_through(&self, peer: Invented, next_hop: [u8; 6]) -> Result<bool> {
        let entry = self.entry(peer.subnet())?;
        Ok(entry.is_some_and(|entry| {
            entry.flags & PEER_NEXT_HOP != 0 && entry.header.starts_with(&next_hop)
        }))
    }

    fn entry(&self, subnet: Ipv4Addr) -> Result<Option<PeerEntry<V4>>> {
        match self.0.get(&subnet.octets(), 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("look {subnet} up in {MAP}")),
        }
    }
}
