//! The choice of a server for a socket.

use super::{
    Affinity, AffinityKey, Frontend, MAX_TRANSLATIONS, Server, ServerKey, Service, Translation,
    Translations, Verdict,
};

/// The tables that the decision reads. Values are copies, because an entry of a map may change at
/// any time.
pub trait SocketTables {
    /// The Service behind an address.
    fn service(&self, frontend: &Frontend) -> Option<Service>;
    /// Whether Services are to be left to kube-proxy for this client.
    fn is_opted_out(&self, client: u64) -> bool;
    /// A server of a set.
    fn server(&self, key: &ServerKey) -> Option<Server>;
    /// The server that a client stays with.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Stores the server that a client stays with.
    fn remember(&self, key: &AffinityKey, affinity: Affinity);
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    fn now_ns(&self) -> u64;
    /// A random number.
    fn random(&self) -> u32;
}

/// Number of steps that find a server in the largest set, because the set's size has no more bits.
const STEPS: u32 = u32::BITS - super::MAX_SERVERS.leading_zeros();

/// Chooses a server for a socket of `client` that asks for `frontend`. The socket stays with
/// `former`, its present server, as long as that one serves.
///
/// # Errors
/// Why the address is left unchanged; kube-proxy translates the address then.
#[inline(always)]
pub fn choose<T: SocketTables>(
    tables: &T,
    client: u64,
    frontend: &Frontend,
    former: Option<&Translation>,
) -> Result<Translation, Verdict> {
    let service = tables.service(frontend).ok_or(Verdict::NotService)?;
    if tables.is_opted_out(client) {
        return Err(Verdict::OptedOut);
    }
    if service.servers == 0 {
        return Err(Verdict::NoServers);
    }
    let given = |server| Translation {
        set: service.set,
        frontend: *frontend,
        server,
    };
    if let Some(former) = former
        && serves(tables, &service, former.set, &former.server)
    {
        return Ok(given(former.server));
    }
    let key = AffinityKey {
        client,
        port_id: service.port_id,
    };
    let server = match stays(tables, &service, &key) {
        Some(server) => server,
        None => any(tables, &service)?,
    };
    // The entry may have been replaced during the read, or its set removed afterwards.
    if tables.service(frontend) != Some(service) {
        return Err(Verdict::Changing);
    }
    if service.affinity_seconds != 0 {
        let lasts_ns = u64::from(service.affinity_seconds) * 1_000_000_000;
        let affinity = Affinity {
            until_ns: tables.now_ns() + lasts_ns,
            set: service.set,
            server,
            unused: 0,
        };
        tables.remember(&key, affinity);
    }
    Ok(given(server))
}

/// The server that a client stays with.
#[inline(always)]
fn stays<T: SocketTables>(tables: &T, service: &Service, key: &AffinityKey) -> Option<Server> {
    if service.affinity_seconds == 0 {
        return None;
    }
    let affinity = tables.affinity(key)?;
    let holds = tables.now_ns() < affinity.until_ns
        && serves(tables, service, affinity.set, &affinity.server);
    holds.then_some(affinity.server)
}

/// A random server, each with the same probability.
#[inline(always)]
fn any<T: SocketTables>(tables: &T, service: &Service) -> Result<Server, Verdict> {
    let slot = (u64::from(tables.random()) * u64::from(service.servers)) >> u32::BITS;
    let key = ServerKey {
        set: service.set,
        slot: slot as u32,
        unused: 0,
    };
    tables.server(&key).ok_or(Verdict::Changing)
}

/// Whether a server that was in the set `seen_in` is one of the Service's.
#[inline(always)]
fn serves<T: SocketTables>(tables: &T, service: &Service, seen_in: u64, server: &Server) -> bool {
    seen_in == service.set || is_in(tables, service, server)
}

/// Looks a server up in its set, by binary search.
#[inline(always)]
fn is_in<T: SocketTables>(tables: &T, service: &Service, server: &Server) -> bool {
    let (mut first, mut behind) = (0, service.servers);
    for _ in 0..STEPS {
        if first >= behind {
            return false;
        }
        let slot = first + (behind - first) / 2;
        let key = ServerKey {
            set: service.set,
            slot,
            unused: 0,
        };
        let Some(other) = tables.server(&key) else {
            return false;
        };
        if other.is(server) {
            return true;
        }
        if other.order() < server.order() {
            first = slot + 1;
        } else {
            behind = slot;
        }
    }
    false
}

/// Whether a socket's server still serves. In doubt the answer is yes, because a socket loses its
/// connection by the other answer.
#[inline(always)]
pub fn is_kept<T: SocketTables>(tables: &T, translation: &Translation) -> bool {
    let service = tables.service(&translation.frontend);
    let serves = match &service {
        Some(service) => serves(tables, service, translation.set, &translation.server),
        None => false,
    };
    serves || tables.service(&translation.frontend) != service
}

/// The place in `table` of the server for `frontend`, or a free one; [`MAX_TRANSLATIONS`] where
/// there is no room.
#[inline(always)]
pub fn place_for(table: &Translations, frontend: &Frontend) -> usize {
    let (mut place, mut free) = (0, MAX_TRANSLATIONS);
    // The loop counts, because the verifier takes a loop that ends at a pointer for an endless one.
    while place < MAX_TRANSLATIONS {
        if let Some(known) = table.all.get(place) {
            if known.set == 0 {
                free = place;
            } else if known.frontend.is(frontend) {
                return place;
            }
        }
        place += 1;
    }
    free
}

/// Notes at `place` the server that a socket was given for datagrams. An answer has the server's
/// address alone, so of several Services with that server the socket sees the one that it asked
/// last; the others are removed.
///
/// # Errors
/// [`Verdict::Full`] where `place` is not in the table.
#[inline(always)]
pub fn note(table: &mut Translations, place: usize, given: Translation) -> Result<(), Verdict> {
    let known = table.all.get(place).ok_or(Verdict::Full)?;
    if known.set == 0 || !known.server.is(&given.server) {
        let of_same_server = place_of(table, &given.server);
        if let Some(other) = table.all.get_mut(of_same_server) {
            other.set = 0;
        }
    }
    *table.all.get_mut(place).ok_or(Verdict::Full)? = given;
    Ok(())
}

/// The place in `table` of the translation to `server` for datagrams; [`MAX_TRANSLATIONS`] where
/// there is none.
#[inline(always)]
pub fn place_of(table: &Translations, server: &Server) -> usize {
    let mut place = 0;
    while place < MAX_TRANSLATIONS {
        if let Some(known) = table.all.get(place)
            && known.set != 0
            && known.server.is(server)
        {
            break;
        }
        place += 1;
    }
    place
}
