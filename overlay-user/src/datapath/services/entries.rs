//! The maps of Services and of their servers, which the agent fills.

use aya::maps::{HashMap, MapData, MapError};
use nix::libc::{E2BIG, ENOMEM};
use overlay_common::socket::{Frontend, Server, ServerKey, Service};

use super::contents::{Failure, Writer};
use super::{SERVERS, SERVICES};
use crate::datapath::Error;
use crate::datapath::maps::{failed, open};
use crate::datapath::pins::Pins;

/// Writes both maps.
pub struct MapWriter {
    services: HashMap<MapData, Frontend, Service>,
    servers: HashMap<MapData, ServerKey, Server>,
}

impl MapWriter {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            services: open(pins, SERVICES)?,
            servers: open(pins, SERVERS)?,
        })
    }
}

impl Writer for MapWriter {
    type Error = Error;

    fn put_server(&mut self, key: ServerKey, server: Server) -> Result<(), Failure<Error>> {
        put(self.servers.insert(key, server, 0), SERVERS)
    }

    fn remove_server(&mut self, key: ServerKey) -> Result<(), Error> {
        let removed = self.servers.remove(&key);
        removed.map_err(failed("delete from", SERVERS))
    }

    fn put_service(&mut self, frontend: Frontend, service: Service) -> Result<(), Failure<Error>> {
        put(self.services.insert(frontend, service, 0), SERVICES)
    }

    fn remove_service(&mut self, frontend: Frontend) -> Result<(), Error> {
        let removed = self.services.remove(&frontend);
        removed.map_err(failed("delete from", SERVICES))
    }
}

fn put(result: Result<(), MapError>, map: &'static str) -> Result<(), Failure<Error>> {
    match result {
        Ok(()) => Ok(()),
        Err(MapError::SyscallError(error))
            if matches!(error.io_error.raw_os_error(), Some(E2BIG | ENOMEM)) =>
        {
            Err(Failure::Full)
        }
        Err(error) => Err(Failure::Other(failed("update", map)(error))),
    }
}
