//! What was refused, by reason.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Why the guard refused a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// VXLAN from an address that holds no lease.
    UnknownVtep,
    /// VXLAN to an address of this node that is not the one its lease names.
    OtherAddress,
    /// VXLAN with a VNI that nobody here has.
    WrongVni,
    /// VXLAN around a tagged frame (RFC 7348 §6.1).
    InnerVlan,
    /// VXLAN around a source inside the overlay that is not in the sender's subnet.
    ForeignInnerSource,
    /// VXLAN that a pod sends.
    PodVxlan,
    /// A source of this node's subnet that comes in through the VXLAN device.
    OwnSubnet,
    /// A pod that sends from an address of the overlay which is not its own.
    SpoofedSource,
    /// A pod whose ARP claims an address of the overlay which is not its own.
    SpoofedArp,
    /// A pod that hides what it sends behind more than one VLAN tag.
    StackedVlan,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::UnknownVtep,
        Self::OtherAddress,
        Self::WrongVni,
        Self::InnerVlan,
        Self::ForeignInnerSource,
        Self::PodVxlan,
        Self::OwnSubnet,
        Self::SpoofedSource,
        Self::SpoofedArp,
        Self::StackedVlan,
    ];

    /// Name of the counter, and label in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownVtep => "unknown_vtep",
            Self::OtherAddress => "other_address",
            Self::WrongVni => "wrong_vni",
            Self::InnerVlan => "inner_vlan",
            Self::ForeignInnerSource => "foreign_inner_source",
            Self::PodVxlan => "pod_vxlan",
            Self::OwnSubnet => "own_subnet",
            Self::SpoofedSource => "spoofed_source",
            Self::SpoofedArp => "spoofed_arp",
            Self::StackedVlan => "stacked_vlan",
        }
    }

    /// Whether the counter is in the bridge table rather than the inet one.
    pub(super) fn in_bridge(self) -> bool {
        matches!(
            self,
            Self::SpoofedSource | Self::SpoofedArp | Self::StackedVlan
        )
    }
}

/// Packets refused since the tables were made, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardCounters(pub BTreeMap<Reason, u64>);

impl GuardCounters {
    /// Packets refused for `reason`.
    #[must_use]
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(&reason).copied().unwrap_or(0)
    }

    /// Takes in what `nft -j list counters` prints (libnftables-json(5)).
    ///
    /// # Errors
    /// What serde found wrong; nothing is taken in then.
    pub fn read(&mut self, json: &str) -> Result<(), serde_json::Error> {
        #[derive(Deserialize)]
        struct Listing {
            nftables: Vec<Item>,
        }
        #[derive(Deserialize)]
        struct Item {
            counter: Option<Counter>,
        }
        #[derive(Deserialize)]
        struct Counter {
            name: String,
            packets: u64,
        }
        let listing: Listing = serde_json::from_str(json)?;
        for counter in listing.nftables.into_iter().filter_map(|item| item.counter) {
            let reason = Reason::ALL
                .into_iter()
                .find(|reason| reason.name() == counter.name);
            self.0
                .extend(reason.map(|reason| (reason, counter.packets)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_name() {
        let mut counters = GuardCounters::default();
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"counter": {"family": "inet", "name": "wrong_vni", "table": "overlay_guard",
                         "handle": 3, "packets": 7, "bytes": 500}},
            {"counter": {"family": "inet", "name": "of_tomorrow", "table": "overlay_guard",
                         "handle": 4, "packets": 1, "bytes": 50}}]}"#;
        counters.read(json).expect("a listing");
        assert_eq!(counters.get(Reason::WrongVni), 7);
        assert_eq!(counters.0.len(), 1);
    }
}
