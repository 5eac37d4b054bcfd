//! Counts of refused packets by reason.

use std::collections::BTreeMap;

use netlink_packet_core::{DefaultNla, Nla as _, NlasIterator};
use serde::{Deserialize, Serialize};

/// Attributes of a named object (`linux/netfilter/nf_tables.h`).
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_DATA: u16 = 4;
/// Attribute of a counter: the packets, 64 bits, network byte order.
const NFTA_COUNTER_PACKETS: u16 = 2;

/// Why the guard refused a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// VXLAN from an address that holds no lease.
    UnknownVtep,
    /// VXLAN to an address of this node that is not the one in the node's lease.
    OtherAddress,
    /// VXLAN with a VNI that no device of this node has.
    WrongVni,
    /// VXLAN around a tagged frame (RFC 7348 §6.1).
    InnerVlan,
    /// VXLAN around a protocol that the overlay does not carry: ARP, IPv6.
    InnerProtocol,
    /// VXLAN around a source inside the overlay that is not in the sender's subnet.
    ForeignInnerSource,
    /// VXLAN that a pod sends.
    PodVxlan,
    /// A source of this node's subnet that arrives through the VXLAN device, or by the NIC without
    /// encapsulation.
    OwnSubnet,
    /// A pod that sends from an address of the overlay other than the pod's own.
    SpoofedSource,
    /// A pod whose ARP claims an address of the overlay other than the pod's own.
    SpoofedArp,
    /// A pod that hides its packets behind more than one VLAN tag.
    StackedVlan,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::UnknownVtep,
        Self::OtherAddress,
        Self::WrongVni,
        Self::InnerVlan,
        Self::InnerProtocol,
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
            Self::InnerProtocol => "inner_protocol",
            Self::ForeignInnerSource => "foreign_inner_source",
            Self::PodVxlan => "pod_vxlan",
            Self::OwnSubnet => "own_subnet",
            Self::SpoofedSource => "spoofed_source",
            Self::SpoofedArp => "spoofed_arp",
            Self::StackedVlan => "stacked_vlan",
        }
    }

    /// Whether the counter is in the table of the bridge.
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

    /// Adds the counter in one object of netlink's answer.
    pub fn read(&mut self, object: &[DefaultNla]) {
        let value = |kind| {
            let found = object.iter().find(|attribute| attribute.kind() == kind);
            found.map(|attribute| {
                let mut value = vec![0; attribute.value_len()];
                attribute.emit_value(&mut value);
                value
            })
        };
        let (Some(name), Some(data)) = (value(NFTA_OBJ_NAME), value(NFTA_OBJ_DATA)) else {
            return;
        };
        let reason = Reason::ALL
            .into_iter()
            .find(|reason| name.strip_suffix(b"\0") == Some(reason.name().as_bytes()));
        let packets = NlasIterator::new(&data)
            .flatten()
            .find(|attribute| attribute.kind() == NFTA_COUNTER_PACKETS)
            .and_then(|attribute| Some(u64::from_be_bytes(attribute.value().try_into().ok()?)));
        self.0.extend(reason.zip(packets));
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;

    use super::*;

    fn object(name: &str, packets: u64) -> Vec<DefaultNla> {
        const NFTA_COUNTER_BYTES: u16 = 1;
        let number = |kind, value: u64| DefaultNla::new(kind, value.to_be_bytes().to_vec());
        let data = [
            number(NFTA_COUNTER_BYTES, 500),
            number(NFTA_COUNTER_PACKETS, packets),
        ];
        let mut nested = vec![0; data.as_slice().buffer_len()];
        data.as_slice().emit(&mut nested);
        vec![
            DefaultNla::new(NFTA_OBJ_NAME, format!("{name}\0").into_bytes()),
            DefaultNla::new(NFTA_OBJ_DATA, nested),
        ]
    }

    #[test]
    fn counters_are_read_by_name() {
        let mut counters = GuardCounters::default();
        counters.read(&object("wrong_vni", 7));
        counters.read(&object("of_tomorrow", 1));
        counters.read(&[]);
        assert_eq!(counters.get(Reason::WrongVni), 7);
        assert_eq!(counters.0.len(), 1);
    }
}
