//! The maps that `overlay_common::schema` describes.

use aya_ebpf::btf_maps::{Array, DevMapHash, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use overlay_common::decide::Tables;
use overlay_common::schema::{
    ABI_VERSION, Config, Counter, Endpoint, Flow, FlowKey, FlowNews, Heartbeat, MAX_DEVICES,
    MAX_FLOWS, MAX_PEERS, MAX_PODS, NEWEST_FLOW, NO_FLOW_SINCE, PeerEntry, PodEntry, Vtep,
};
use overlay_common::verdict::{COUNTERS, counter_index};
use overlay_common::{Family, Hook, Verdict};

/// The maps of one family's data path.
pub trait Mapped: Family {
    fn config() -> &'static Array<Config<Self>, 1>;
    fn endpoints() -> &'static HashMap<u32, Endpoint<Self>, { MAX_PODS as usize }>;
    fn pods() -> &'static HashMap<Self::Addr, PodEntry, { MAX_PODS as usize }>;
    fn devices() -> &'static DevMapHash<{ MAX_DEVICES as usize }>;
    fn peers() -> &'static HashMap<Self::Addr, PeerEntry<Self>, { MAX_PEERS as usize }>;
    fn vteps() -> &'static HashMap<Self::Addr, Vtep, { MAX_PEERS as usize }>;
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow, { MAX_FLOWS as usize }>;
    fn flow_news() -> &'static Array<FlowNews, 2>;
}

/// Declares the maps of a family.
macro_rules! maps {
    (
        $family:ident: $config:tt, $endpoints:tt, $pods:tt, $devices:tt, $peers:tt, $vteps:tt,
        $flows:tt, $flow_news:tt
    ) => {
        const _: () = {
            type Addr = <$family as Family>::Addr;

            #[btf_map(name = $config)]
            static CONFIG: Array<Config<$family>, 1> = Array::new();
            #[btf_map(name = $endpoints)]
            static ENDPOINTS: HashMap<u32, Endpoint<$family>, { MAX_PODS as usize }> =
                HashMap::new();
            #[btf_map(name = $pods)]
            static PODS: HashMap<Addr, PodEntry, { MAX_PODS as usize }> = HashMap::new();
            #[btf_map(name = $devices)]
            static DEVICES: DevMapHash<{ MAX_DEVICES as usize }> = DevMapHash::new();
            #[btf_map(name = $peers)]
            static PEERS: HashMap<Addr, PeerEntry<$family>, { MAX_PEERS as usize }> =
                HashMap::new();
            #[btf_map(name = $vteps)]
            static VTEPS: HashMap<Addr, Vtep, { MAX_PEERS as usize }> = HashMap::new();
            #[btf_map(name = $flows)]
            static FLOWS: LruHashMap<FlowKey<$family>, Flow, { MAX_FLOWS as usize }> =
                LruHashMap::new();
            #[btf_map(name = $flow_news)]
            static FLOW_NEWS: Array<FlowNews, 2> = Array::new();

            impl Mapped for $family {
                #[inline(always)]
                fn config() -> &'static Array<Config<Self>, 1> {
                    &CONFIG
                }
                #[inline(always)]
                fn endpoints() -> &'static HashMap<u32, Endpoint<Self>, { MAX_PODS as usize }> {
                    &ENDPOINTS
                }
                #[inline(always)]
                fn pods() -> &'static HashMap<Addr, PodEntry, { MAX_PODS as usize }> {
                    &PODS
                }
                #[inline(always)]
                fn devices() -> &'static DevMapHash<{ MAX_DEVICES as usize }> {
                    &DEVICES
                }
                #[inline(always)]
                fn peers() -> &'static HashMap<Addr, PeerEntry<Self>, { MAX_PEERS as usize }> {
                    &PEERS
                }
                #[inline(always)]
                fn vteps() -> &'static HashMap<Addr, Vtep, { MAX_PEERS as usize }> {
                    &VTEPS
                }
                #[inline(always)]
                fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow, { MAX_FLOWS as usize }> {
                    &FLOWS
                }
                #[inline(always)]
                fn flow_news() -> &'static Array<FlowNews, 2> {
                    &FLOW_NEWS
                }
            }
        };
    };
}
/// The family of the pods that the programs serve. Programs for both families in one would exceed
/// the limits of the verifier of Linux 6.1.
#[cfg(not(feature = "ipv6"))]
pub type Served = overlay_common::V4;
/// The family of the pods, as above.
#[cfg(feature = "ipv6")]
pub type Served = overlay_common::V6;

#[cfg(not(feature = "ipv6"))]
maps!(
    Served: "ov_config4", "ov_endpoints4", "ov_pods4", "ov_devices4", "ov_peers4", "ov_vteps4",
    "ov_flows4", "ov_flow_news4"
);
#[cfg(feature = "ipv6")]
maps!(
    Served: "ov_config6", "ov_endpoints6", "ov_pods6", "ov_devices6", "ov_peers6", "ov_vteps6",
    "ov_flows6", "ov_flow_news6"
);

#[btf_map(name = "ov_heartbeat")]
static HEARTBEAT: Array<Heartbeat, 1> = Array::new();
#[btf_map(name = "ov_counters")]
static COUNTS: PerCpuArray<Counter, { COUNTERS as usize }> = PerCpuArray::new();

/// The maps behind the decision.
pub struct Maps;

impl<F: Mapped> Tables<F> for Maps {
    #[inline(always)]
    fn config(&self) -> Option<&Config<F>> {
        // An array has its element from the start: zeros until an agent has written the element.
        F::config()
            .get(0)
            .filter(|config| config.abi == ABI_VERSION)
    }

    #[inline(always)]
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint<F>> {
        // SAFETY: the element is memory of the map for as long as the program runs (maps are
        // preallocated), and any bytes are a value. An element that is deleted or replaced
        // meanwhile may be given to another key before the program ends. Then one packet is treated
        // as one of the other key, as could also happen to a packet that arrives a moment later.
        unsafe { F::endpoints().get(ifindex) }
    }

    #[inline(always)]
    fn pod(&self, address: F::Addr) -> Option<&PodEntry> {
        // SAFETY: as for `endpoint`.
        let pod = unsafe { F::pods().get(address) }?;
        // The kernel has removed a deleted device from the map, whichever device has its index now.
        // A classifier may look such a map up since Linux 5.3, although only XDP may send by it.
        F::devices().get_ifindex(pod.ifindex).map(|_| pod)
    }

    #[inline(always)]
    fn has_device(&self, ifindex: u32) -> bool {
        F::devices().get_ifindex(ifindex).is_some()
    }

    #[inline(always)]
    fn peer(&self, subnet: F::Addr) -> Option<&PeerEntry<F>> {
        // SAFETY: as for `endpoint`.
        unsafe { F::peers().get(subnet) }
    }

    #[inline(always)]
    fn is_vtep(&self, address: F::Addr) -> bool {
        F::vteps().get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_stack_owned(&self, flow: &FlowKey<F>) -> bool {
        if cfg!(feature = "without-stack-owned") {
            return false;
        }
        // Comparing two words saves a hash over the flow and a walk.
        let news = |key| F::flow_news().get(key).map(|news| news.at_ns);
        let any = cfg!(feature = "without-flow-news") || news(NEWEST_FLOW) != news(NO_FLOW_SINCE);
        any && F::flows().get_ptr(flow).is_some()
    }

    #[inline(always)]
    fn leases_are_stale(&self) -> bool {
        !is_ahead(|heartbeat| heartbeat.leases_until_ns)
    }
}

/// Remembers a flow that the IP stack owns.
#[inline(always)]
pub fn remember<F: Mapped>(flow: &FlowKey<F>, now_ns: u64) {
    if let Some(known) = F::flows().get_ptr_mut(flow) {
        // SAFETY: as for `endpoint`; the word is written at once. In the worst case the element is
        // another flow's by now, which then counts as seen now.
        unsafe { (*known).last_seen_ns = now_ns };
        return;
    }
    // A full map evicts an entry by itself; no other error could be handled here.
    let _ = F::flows().insert(
        flow,
        Flow {
            last_seen_ns: now_ns,
        },
        0,
    );
    if let Some(news) = F::flow_news().get_ptr_mut(NEWEST_FLOW) {
        // SAFETY: an element of an array is always there; its one word is written at once.
        unsafe { (&raw mut (*news).at_ns).write_volatile(now_ns) };
    }
}

/// Whether the agent is alive, so that its knowledge of next hops is valid.
#[inline(always)]
pub fn next_hops_are_fresh() -> bool {
    !cfg!(feature = "without-prepared-next-hop")
        && is_ahead(|heartbeat| heartbeat.next_hops_until_ns)
}

/// Whether a time that the agent has set is still in the future.
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
        // SAFETY: the pointer is to this CPU's own copy, and programs on the same hook, which alone
        // have the same counters, do not interrupt each other on a CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}
