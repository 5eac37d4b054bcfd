//! The contents of the maps of Services, changed so that no socket sees a part of a change.
//!
//! A set of servers is written completely under a new id; then the frontend's entry is replaced in
//! one step; then the former set is removed. A program that chooses a server therefore sees one of
//! the two sets completely.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use overlay_common::socket;

use crate::service::{Frontend, ServiceTable, ServiceTransport, Serving};

/// The target of writes.
pub trait Writer {
    /// The error of a write.
    type Error;
    /// Writes a server's place.
    fn put_server(
        &mut self,
        key: socket::ServerKey,
        server: socket::Server,
    ) -> Result<(), Failure<Self::Error>>;
    /// Takes a server's place away.
    fn remove_server(&mut self, key: socket::ServerKey) -> Result<(), Self::Error>;
    /// Writes a frontend.
    fn put_service(
        &mut self,
        frontend: socket::Frontend,
        service: socket::Service,
    ) -> Result<(), Failure<Self::Error>>;
    /// Takes a frontend away.
    fn remove_service(&mut self, frontend: socket::Frontend) -> Result<(), Self::Error>;
}

/// Why an entry was not written.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// There is no room.
    Full,
    /// Anything else.
    Other(E),
}

/// The result of a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Number of frontends written or removed.
    pub frontends: usize,
    /// Whether a server of datagrams was removed.
    pub datagram_server_left: bool,
}

/// The contents of the maps.
pub struct Contents {
    table: ServiceTable,
    /// The set of each frontend that has found room, and how many servers are in the set.
    sets: BTreeMap<Frontend, (u64, u32)>,
    without_room: BTreeSet<Frontend>,
    next: u64,
}

impl Contents {
    /// Maps with nothing in them. Sets get ids from `first` on, which no earlier one may have had.
    #[must_use]
    pub fn empty(first: u64) -> Self {
        Self {
            table: ServiceTable::default(),
            sets: BTreeMap::new(),
            without_room: BTreeSet::new(),
            next: first.max(1),
        }
    }

    /// How many frontends are in the maps, how many servers behind them, and how many frontends
    /// have found no room.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let servers = self.sets.values().map(|(_, servers)| *servers as usize);
        (self.sets.len(), servers.sum(), self.without_room.len())
    }

    /// Makes the maps hold `table`. A frontend for which there is no room is left out, and is
    /// kube-proxy's.
    ///
    /// # Errors
    /// The first failure; what is in the maps is not known then.
    pub fn become_table<W: Writer>(
        &mut self,
        table: &ServiceTable,
        writer: &mut W,
    ) -> Result<Changed, W::Error> {
        let mut changed = Changed::default();
        let earlier = std::mem::replace(&mut self.table, table.clone());
        let mut due = Vec::new();
        for difference in table.differences(&earlier) {
            let left = |before: &Arc<Serving>| {
                let now = difference.now.map_or(&[][..], |now| &now.servers);
                before
                    .servers
                    .iter()
                    .any(|server| now.binary_search(server).is_err())
            };
            changed.datagram_server_left |= difference.key.transport == ServiceTransport::Udp
                && difference.before.is_some_and(left);
            changed.frontends += 1;
            self.without_room.remove(difference.key);
            match difference.now {
                Some(now) => due.push((*difference.key, Arc::clone(now))),
                // What goes makes room.
                None => self.take_away(difference.key, writer)?,
            }
        }
        // Frontends that found no room before may find room now.
        for frontend in std::mem::take(&mut self.without_room) {
            let serving = table.get(&frontend).map(Arc::clone);
            due.extend(serving.map(|serving| (frontend, serving)));
        }
        for (frontend, serving) in due {
            self.set(frontend, &serving, writer)?;
        }
        Ok(changed)
    }

    fn take_away<W: Writer>(
        &mut self,
        frontend: &Frontend,
        writer: &mut W,
    ) -> Result<(), W::Error> {
        if let Some((set, servers)) = self.sets.remove(frontend) {
            writer.remove_service(frontend_of(frontend))?;
            remove_set(set, servers, writer)?;
        }
        Ok(())
    }

    fn set<W: Writer>(
        &mut self,
        frontend: Frontend,
        serving: &Serving,
        writer: &mut W,
    ) -> Result<(), W::Error> {
        let set = self.next;
        self.next += 1;
        let mut servers: Vec<_> = serving.servers.iter().map(server_of).collect();
        // The programs look a server up by halves.
        servers.sort_unstable();
        servers.dedup();
        let mut written = 0;
        let mut result = Ok(());
        for (slot, server) in (0..).zip(&servers) {
            result = writer.put_server(server_key(set, slot), *server);
            if result.is_err() {
                break;
            }
            written += 1;
        }
        let service = socket::Service {
            set,
            servers: written,
            affinity_seconds: serving.affinity.map_or(0, |affinity| {
                u32::try_from(affinity.lasts.as_secs()).unwrap_or(u32::MAX)
            }),
            port_id: serving.affinity.map_or(0, |affinity| affinity.port_id),
        };
        let result = result.and_then(|()| writer.put_service(frontend_of(&frontend), service));
        match result {
            Ok(()) => {
                if let Some((set, servers)) = self.sets.insert(frontend, (set, written)) {
                    remove_set(set, servers, writer)?;
                }
                Ok(())
            }
            Err(Failure::Full) => {
                remove_set(set, written, writer)?;
                self.take_away(&frontend, writer)?;
                self.without_room.insert(frontend);
                Ok(())
            }
            Err(Failure::Other(error)) => Err(error),
        }
    }
}

fn remove_set<W: Writer>(set: u64, servers: u32, writer: &mut W) -> Result<(), W::Error> {
    (0..servers).try_for_each(|slot| writer.remove_server(server_key(set, slot)))
}

fn server_key(set: u64, slot: u32) -> socket::ServerKey {
    socket::ServerKey {
        set,
        slot,
        unused: 0,
    }
}

/// The maps' form of a frontend.
#[must_use]
pub fn frontend_of(frontend: &Frontend) -> socket::Frontend {
    socket::Frontend {
        address: bytes_of(frontend.address),
        port: frontend.port,
        transport: match frontend.transport {
            ServiceTransport::Tcp => socket::TCP,
            ServiceTransport::Udp => socket::UDP,
        },
    }
}

/// The maps' form of a server.
#[must_use]
pub fn server_of(server: &SocketAddr) -> socket::Server {
    socket::Server::new(bytes_of(server.ip()), server.port())
}

/// User space's form of an address and port in a map.
#[must_use]
pub fn address_of(address: [u8; 16], port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(address).to_canonical(), port)
}

fn bytes_of(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests;
