//! The tables as values: read from the pinned maps, or invented.

use std::collections::{BTreeMap, HashSet};

use crate::decide::Tables;
use crate::family::Family;
use crate::schema::{Config, Endpoint, FlowKey, PeerEntry, PodEntry, Vtep};

/// The tables of the data path of pods of one family at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot<F: Family, O: Family = F> {
    /// `ov_config4` or its like; `None` before an agent has written one.
    pub config: Option<Config<F, O>>,
    /// `ov_endpoints4` or its like.
    pub endpoints: BTreeMap<u32, Endpoint<F>>,
    /// `ov_pods4` or its like.
    pub pods: BTreeMap<F::Addr, PodEntry>,
    /// `ov_peers4` or its like.
    pub peers: BTreeMap<F::Addr, PeerEntry<O>>,
    /// `ov_vteps4` or its like.
    pub vteps: BTreeMap<O::Addr, Vtep>,
    /// The keys of `ov_flows4` or its like.
    pub flows: HashSet<FlowKey<F>>,
    /// Whether the list of leases is past the end of its validity in `ov_heartbeat`.
    pub leases_are_stale: bool,
}

impl<F: Family, O: Family> Default for Snapshot<F, O> {
    fn default() -> Self {
        Self {
            config: None,
            endpoints: BTreeMap::new(),
            pods: BTreeMap::new(),
            peers: BTreeMap::new(),
            vteps: BTreeMap::new(),
            flows: HashSet::new(),
            leases_are_stale: false,
        }
    }
}

impl<F: Family, O: Family> Tables<F, O> for Snapshot<F, O> {
    fn config(&self) -> Option<&Config<F, O>> {
        self.config.as_ref()
    }

    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint<F>> {
        self.endpoints.get(&ifindex)
    }

    fn pod(&self, address: F::Addr) -> Option<&PodEntry> {
        self.pods.get(&address)
    }

    fn peer(&self, subnet: F::Addr) -> Option<&PeerEntry<O>> {
        self.peers.get(&subnet)
    }

    fn has_device(&self, _ifindex: u32) -> bool {
        // A dump contains no device that was deleted.
        true
    }

    fn is_vtep(&self, address: O::Addr) -> bool {
        self.vteps.contains_key(&address)
    }

    fn is_stack_owned(&self, flow: &FlowKey<F>) -> bool {
        self.flows.contains(flow)
    }

    fn leases_are_stale(&self) -> bool {
        self.leases_are_stale
    }
}
