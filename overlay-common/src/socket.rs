//! Services at the socket: the choice of a server for a socket that asks for a Service.
//!
//! The programs on connect and sendmsg choose the server; those on recvmsg and getpeername return
//! the Service's address where the socket would otherwise see its server's. [`choose`] is the
//! decision; this module has the keys and values of its maps. Addresses are 16 bytes in network
//! order, IPv4 in its mapped form (RFC 4291, section 2.5.5.2), because a socket of one family may
//! reach both.
//!
//! | map | type | key | value |
//! |---|---|---|---|
//! | `ov_services` | hash | [`Frontend`] | [`Service`] |
//! | `ov_servers` | hash | [`ServerKey`] | [`Server`] |
//! | `ov_opted_out` | hash | cookie of a pod's network namespace | nothing: left to kube-proxy |
//! | `ov_affinity` | LRU hash | [`AffinityKey`] | [`Affinity`] |
//! | `ov_connected` | socket storage | a socket | [`Translation`] of its connection |
//! | `ov_unconnected` | socket storage | a socket | [`Translations`] of datagrams to addresses |
//! | `ov_found_gone` | array | 0 | connected sockets whose servers have gone, at the last look |
//! | `ov_socket_count` | per-CPU array | [`counter_index`] | how many ended so |
//!
//! A set of servers never changes, and has an id that is never reused. A change gives a frontend
//! another set, in one step.

use bytemuck::{Pod as Plain, Zeroable};

mod decide;
mod verdict;

pub use decide::{SocketTables, choose, is_kept, note, place_for, place_of};
pub use verdict::{COUNTERS, Operation, SLOTS_PER_OPERATION, Verdict, counter_index};

/// Most addresses of Services.
pub const MAX_FRONTENDS: u32 = 65_536;
/// Most servers behind all addresses.
pub const MAX_SERVERS: u32 = 262_144;
/// Most remembered clients of Services with session affinity.
pub const MAX_AFFINITIES: u32 = 16_384;
/// Most pods that are left to kube-proxy.
pub const MAX_OPTED_OUT: u32 = crate::schema::MAX_PODS;
/// Most Services that an unconnected socket can use at a time.
pub const MAX_TRANSLATIONS: usize = 8;

/// `IPPROTO_TCP`.
pub const TCP: u16 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u16 = 17;

/// An address at which a Service is reached.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Plain, Zeroable)]
pub struct Frontend {
    /// IP address.
    pub address: [u8; 16],
    /// Port.
    pub port: u16,
    /// [`TCP`] or [`UDP`].
    pub transport: u16,
}

/// The servers behind a [`Frontend`], and their choice.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Service {
    /// The id of the set of servers; never zero.
    pub set: u64,
    /// Number of servers in the set.
    pub servers: u32,
    /// Number of seconds for which a client stays with its server; zero without session affinity.
    pub affinity_seconds: u32,
    /// The Service's port that the frontend belongs to. A client stays with its server at all
    /// frontends of the port, as with kube-proxy. Zero without session affinity.
    pub port_id: u64,
}

/// Place of a server in a set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Plain, Zeroable)]
pub struct ServerKey {
    /// See [`Service::set`].
    pub set: u64,
    /// From zero; servers are in ascending order.
    pub slot: u32,
    /// Zero.
    pub unused: u32,
}

/// A server.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Plain, Zeroable)]
pub struct Server {
    /// IP address.
    pub address: [u8; 16],
    /// Port.
    pub port: u16,
    /// Zero.
    pub unused: u16,
}

impl Server {
    /// The server at an address.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: [u8; 16], port: u16) -> Self {
        Self {
            address,
            port,
            unused: 0,
        }
    }

    /// The fields as values that give the same order.
    #[inline(always)]
    fn order(&self) -> (u64, u64, u16) {
        let [a, b, c, d, _] = *words(self);
        let both = |high: u32, low: u32| {
            u64::from(u32::from_be(high)) << u32::BITS | u64::from(u32::from_be(low))
        };
        (both(a, b), both(c, d), self.port)
    }

    /// Whether two frontends are equal.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        are_same(words(self), words(other))
    }
}

impl Frontend {
    /// Whether two servers are equal.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        are_same(words(self), words(other))
    }
}

/// A frontend or a server as words, because a program would need many more loads for bytes.
#[inline(always)]
fn words<T: Plain>(value: &T) -> &[u32; 5] {
    bytemuck::cast_ref(value)
}

/// Compares without a call to `memcmp`, which programs do not have.
#[inline(always)]
fn are_same(these: &[u32; 5], those: &[u32; 5]) -> bool {
    let ([a, b, c, d, e], [v, w, x, y, z]) = (these, those);
    // The last words differ most often.
    e == z && d == y && c == x && b == w && a == v
}

/// The IPv4 address in its mapped form.
#[must_use]
#[inline(always)]
pub const fn mapped(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The server that a socket was given, and for which frontend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Translation {
    /// The set in which the server was last seen; zero where no server was given.
    pub set: u64,
    /// The frontend that the socket asked for.
    pub frontend: Frontend,
    /// The server that the socket got.
    pub server: Server,
}

/// The translations of an unconnected socket, in no order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Translations {
    /// Unused places are zero.
    pub all: [Translation; MAX_TRANSLATIONS],
}

/// A client of a Service with session affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Plain, Zeroable)]
pub struct AffinityKey {
    /// Cookie of the client's network namespace (`SO_NETNS_COOKIE`): a pod, or the node.
    pub client: u64,
    /// The Service's port that the client asked for; see [`Service::port_id`].
    pub port_id: u64,
}

/// The server that a client stays with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Affinity {
    /// End of the affinity (`CLOCK_MONOTONIC`, nanoseconds), unless the client connects again.
    pub until_ns: u64,
    /// The set in which the server was last seen.
    pub set: u64,
    /// The server of the flow.
    pub server: Server,
    /// Zero.
    pub unused: u32,
}

const _: () = {
    assert!(size_of::<Frontend>() == 20);
    assert!(size_of::<Server>() == 20);
    assert!(size_of::<Translation>() == 48);
    assert!(size_of::<Service>() == 24);
    assert!(size_of::<AffinityKey>() == 16);
    assert!(size_of::<Affinity>() == 40);
};

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "a marker trait of map values")]
mod user {
    // SAFETY: the types derive `bytemuck::Pod`, which checks the requirements of `aya::Pod`.
    unsafe impl aya::Pod for super::Frontend {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ServerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Server {}
}
