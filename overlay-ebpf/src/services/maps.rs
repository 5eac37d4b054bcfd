//! The maps that `overlay_common::socket` describes.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::btf_map;
use overlay_common::socket::{
    Affinity, AffinityKey, COUNTERS, Frontend, MAX_AFFINITIES, MAX_FRONTENDS, MAX_OPTED_OUT,
    MAX_SERVERS, Operation, Server, ServerKey, Service, SocketTables, Translation, Translations,
    Verdict, counter_index,
};

/// Memory is allocated per entry, because few clusters have as many entries as there is room for.
const AS_NEEDED: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "ov_services")]
static SERVICES: HashMap<Frontend, Service, { MAX_FRONTENDS as usize }, AS_NEEDED> = HashMap::new();
#[btf_map(name = "ov_servers")]
static SERVERS: HashMap<ServerKey, Server, { MAX_SERVERS as usize }, AS_NEEDED> = HashMap::new();
#[btf_map(name = "ov_opted_out")]
static OPTED_OUT: HashMap<u64, u32, { MAX_OPTED_OUT as usize }, AS_NEEDED> = HashMap::new();
#[btf_map(name = "ov_affinity")]
static AFFINITY: LruHashMap<AffinityKey, Affinity, { MAX_AFFINITIES as usize }> = LruHashMap::new();
#[btf_map(name = "ov_connected")]
pub static CONNECTED: SkStorage<Translation> = SkStorage::new();
#[btf_map(name = "ov_unconnected")]
pub static UNCONNECTED: SkStorage<Translations> = SkStorage::new();
#[btf_map(name = "ov_found_gone")]
static FOUND_GONE: Array<u64, 1> = Array::new();
#[btf_map(name = "ov_socket_count")]
static COUNTS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

/// The maps behind the decision.
pub struct ServiceMaps;

impl SocketTables for ServiceMaps {
    #[inline(always)]
    fn service(&self, frontend: &Frontend) -> Option<Service> {
        // SAFETY: the memory belongs to a map as long as the program runs, and any bytes are a
        // value. The memory may become another entry's meanwhile, for which the decision is
        // prepared.
        unsafe { SERVICES.get(frontend) }.copied()
    }

    #[inline(always)]
    fn is_opted_out(&self, client: u64) -> bool {
        OPTED_OUT.get_ptr(client).is_some()
    }

    #[inline(always)]
    fn server(&self, key: &ServerKey) -> Option<Server> {
        // SAFETY: as for `service`.
        unsafe { SERVERS.get(key) }.copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: as for `service`. The remembered server of a client is a hint: it counts only if
        // the Service has this server.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &AffinityKey, affinity: Affinity) {
        // A full map evicts an entry by itself; no other error could be handled here.
        let _ = AFFINITY.insert(key, affinity, 0);
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: the helper takes nothing and cannot fail (Linux 5.11).
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes nothing and cannot fail.
        unsafe { bpf_get_prandom_u32() }
    }
}

/// Notes a connected socket whose server does not serve any more.
#[inline(always)]
pub fn found_gone() {
    if let Some(found) = FOUND_GONE.get_ptr_mut(0) {
        // SAFETY: an element of an array is always there; one walk at a time writes it.
        unsafe { *found += 1 };
    }
}

/// Counts the end of a visit.
#[inline(always)]
pub fn count(operation: Operation, verdict: Verdict) {
    if let Some(counter) = COUNTS.get_ptr_mut(counter_index(operation, verdict)) {
        // SAFETY: the pointer is to this CPU's own copy. One of these programs may interrupt
        // another between the two steps, which loses one count and has no other effect, because
        // Rust has no atomic addition for this target.
        unsafe { *counter += 1 };
    }
}
