//! Services at the socket: which server a socket gets that asks for a Service.
//!
//! The programs on connect and sendmsg choose; those on recvmsg and getpeername say the Service's
//! address where the socket would otherwise see its server's. [`choose`] is the decision; here are
//! keys and values of its maps. Addresses are 16 bytes in network order, IPv4 in its mapped form
//! (RFC 4291, section 2.5.5.2), because a socket of one family may reach both.
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
//! A set of servers has an id that is never used again, and never changes: what changes is which
//! set a frontend has, in one step.

use bytemuck::{Pod as Plain, Zeroable};

mod decide;
mod verdict;

pub use decide::{SocketTables, choose, is_kept, note, place_for, place_of};
pub use verdict::{COUNTERS, Operation, SLOTS_PER_OPERATION, Verdict, counter_index};

/// How many addresses of Services there can be.
pub const MAX_FRONTENDS: u32 = 65_536;
/// How many servers there can be behind all of them.
pub const MAX_SERVERS: u32 = 262_144;
/// How many clients of Services with session affinity are remembered.
pub const MAX_AFFINITIES: u32 = 16_384;
/// How many pods can be left to kube-proxy.
pub const MAX_OPTED_OUT: u32 = crate::schema::MAX_PODS;
/// How many Services an unconnected socket can talk to.
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

/// What is behind a [`Frontend`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Service {
    /// The set of its servers; never zero.
    pub set: u64,
    /// How many servers are in the set.
    pub servers: u32,
    /// For how many seconds a client stays with its server; zero without session affinity.
    pub affinity_seconds: u32,
    /// The port of a Service that the frontend is of. A client stays with its server whichever of
    /// the port's frontends it asks for, as with kube-proxy. Zero without session affinity.
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

/// The servers.
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

    /// What orders servers as their fields do.
    #[inline(always)]
    fn order(&self) -> (u64, u64, u16) {
        let [a, b, c, d, _] = *words(self);
        let both = |high: u32, low: u32| {
            u64::from(u32::from_be(high)) << u32::BITS | u64::from(u32::from_be(low))
        };
        (both(a, b), both(c, d), self.port)
    }

    /// Whether two are the same.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        are_same(words(self), words(other))
    }
}

impl Frontend {
    /// Whether two are the same.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        are_same(words(self), words(other))
    }
}

/// A frontend or a server as words: bytes are many more loads to a program.
#[inline(always)]
fn words<T: Plain>(value: &T) -> &[u32; 5] {
    bytemuck::cast_ref(value)
}

/// Without a call to compare memory, which programs have not.
#[inline(always)]
fn are_same(these: &[u32; 5], those: &[u32; 5]) -> bool {
    let ([a, b, c, d, e], [v, w, x, y, z]) = (these, those);
    // The last words differ most.
    e == z && d == y && c == x && b == w && a == v
}

/// The IPv4 address in its mapped form.
#[must_use]
#[inline(always)]
pub const fn mapped(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// What a socket was given.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Translation {
    /// The set that the server was last seen in; zero where nothing was given.
    pub set: u64,
    /// What the socket asked for.
    pub frontend: Frontend,
    /// What it got.
    pub server: Server,
}

/// What an unconnected socket was given, in no order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Translations {
    /// Unused places are zeros.
    pub all: [Translation; MAX_TRANSLATIONS],
}

/// A client of a Service with session affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Plain, Zeroable)]
pub struct AffinityKey {
    /// Cookie of the client's network namespace (`SO_NETNS_COOKIE`): a pod, or the node.
    pub client: u64,
    /// What it asked for; see [`Service::port_id`].
    pub port_id: u64,
}

/// Where a client stays.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Affinity {
    /// Until when (`CLOCK_MONOTONIC`, nanoseconds), unless it connects again.
    pub until_ns: u64,
    /// The set that the server was last seen in.
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
    // SAFETY: the types derive `bytemuck::Pod`, which checks what `aya::Pod` asks for.
    unsafe impl aya::Pod for super::Frontend {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ServerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Server {}
}
