//! The maps, as `overlay_common::schema` describes them.

use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use overlay_common::decide::Tables;
use overlay_common::schema::{
    ABI_VERSION, Config, Counter, Endpoint, Flow, FlowKey, FlowNews, Heartbeat, MAX_FLOWS,
    MAX_PEERS, MAX_PODS, NEWEST_FLOW, NO_FLOW_SINCE, PeerEntry, PodEntry, Vtep,
};
use overlay_common::verdict::{COUNTERS, counter_index};
use overlay_common::{Family, Hook, V4, Verdict};

type Addr = <V4 as Family>::Addr;

#[btf_map(name = "ov_config")]
static CONFIG: Array<Config<V4>, 1> = Array::new();
#[btf_map(name = "ov_endpoints")]
static ENDPOINTS: HashMap<u32, Endpoint<V4>, { MAX_PODS as usize }> = HashMap::new();
#[btf_map(name = "ov_pods")]
static PODS: HashMap<Addr, PodEntry, { MAX_PODS as usize }> = HashMap::new();
#[btf_map(name = "ov_peers")]
static PEERS: HashMap<Addr, PeerEntry<V4>, { MAX_PEERS as usize }> = HashMap::new();
#[btf_map(name = "ov_vteps")]
static VTEPS: HashMap<Addr, Vtep, { MAX_PEERS as usize }> = HashMap::new();
#[btf_map(name = "ov_flows")]
static FLOWS: LruHashMap<FlowKey<V4>, Flow, { MAX_FLOWS as usize }> = LruHashMap::new();
#[btf_map(name = "ov_flow_news")]
static FLOW_NEWS: Array<FlowNews, 2> = Array::new();
#[btf_map(name = "ov_heartbeat")]
static HEARTBEAT: Array<Heartbeat, 1> = Array::new();
#[btf_map(name = "ov_counters")]
static COUNTS: PerCpuArray<Counter, { COUNTERS as usize }> = PerCpuArray::new();

/// The maps behind the decision.
pub struct Maps;

impl Tables<V4> for Maps {
    #[inline(always)]
    fn config(&self) -> Option<&Config<V4>> {
        // An array has its element from the start: zeros until an agent has written it.
        CONFIG.get(0).filter(|config| config.abi == ABI_VERSION)
    }

    #[inline(always)]
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint<V4>> {
        // SAFETY: the element is memory of the map for as long as the program runs (maps are preallocated), and any bytes are a
        // value. One that is deleted or replaced meanwhile may be given to another key before the program ends: then one
        // packet fares as that one's, as it may when it comes a moment later.
        unsafe { ENDPOINTS.get(ifindex) }
    }

    #[inline(always)]
    fn pod(&self, address: Addr) -> Option<&PodEntry> {
        // SAFETY: as for `endpoint`.
        unsafe { PODS.get(address) }
    }

    #[inline(always)]
    fn peer(&self, subnet: Addr) -> Option<&PeerEntry<V4>> {
        // SAFETY: as for `endpoint`.
        unsafe { PEERS.get(subnet) }
    }

    #[inline(always)]
    fn is_vtep(&self, address: Addr) -> bool {
        VTEPS.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_stack_owned(&self, flow: &FlowKey<V4>) -> bool {
        if cfg!(feature = "without-stack-owned") {
            return false;
        }
        // Two words against a hash over the flow and a walk.
        let news = |key| FLOW_NEWS.get(key).map(|news| news.at_ns);
        let any = cfg!(feature = "without-flow-news") || news(NEWEST_FLOW) != news(NO_FLOW_SINCE);
        any && FLOWS.get_ptr(flow).is_some()
    }

    #[inline(always)]
    fn leases_are_stale(&self) -> bool {
        !is_ahead(|heartbeat| heartbeat.leases_until_ns)
    }
}

/// Remembers that the IP stack owns a flow.
#[inline(always)]
pub fn remember(flow: &FlowKey<V4>, now_ns: u64) {
    if let Some(known) = FLOWS.get_ptr_mut(flow) {
        // SAFETY: as for `endpoint`; the word is written at once, to another flow's element at worst, which then looks as
        // fresh as this one.
        unsafe { (*known).last_seen_ns = now_ns };
        return;
    }
    // A full map makes room for itself; there is nothing else that could fail and be helped.
    let _ = FLOWS.insert(
        flow,
        Flow {
            last_seen_ns: now_ns,
        },
        0,
    );
    if let Some(news) = FLOW_NEWS.get_ptr_mut(NEWEST_FLOW) {
        // SAFETY: an element of an array is always there; its one word is written at once.
        unsafe { (&raw mut (*news).at_ns).write_volatile(now_ns) };
    }
}

/// Whether the agent lives, and with it what it knows of next hops.
#[inline(always)]
pub fn next_hops_are_fresh() -> bool {
    !cfg!(feature = "without-prepared-next-hop")
        && is_ahead(|heartbeat| heartbeat.next_hops_until_ns)
}

/// Whether a moment that the agent has set is still to come.
#[inline(always)]
fn is_ahead(until_ns: impl FnOnce(&Heartbeat) -> u64) -> bool {
    // SAFETY: the helper takes nothing and cannot fail (Linux 5.11).
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    HEARTBEAT
        .get(0)
        .is_some_and(|heartbeat| now < until_ns(heartbeat))
}

/// Counts a packet under its verdict.
#[inline(always)]
pub fn count(hook: Hook, verdict: Verdict, bytes: u32) {
    if cfg!(feature = "without-counters") {
        return;
    }
    if let Some(counter) = COUNTS.get_ptr_mut(counter_index(hook, verdict)) {
        // SAFETY: the pointer is to this CPU's own copy, and programs on the same hook, which alone have the same
        // counters, do not interrupt each other on a CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}
