//! Resolvers: sockets of datagrams that use one Service permanently.

use std::net::{SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use overlay_tests::{Namespace, wait_until};

use super::stage::{self, PATIENCE, Stage, ask, ask_peer, connected, service, table};

/// Time after which a lookup counts as lost.
const LOST: Duration = Duration::from_secs(1);
/// Number of lookups between changes: thousands a second.
const MANY: usize = 1000;

/// A resolver, and the results of its lookups.
struct Resolver {
    place: Namespace,
    is_connected: bool,
    answered: AtomicUsize,
    lost: AtomicUsize,
    /// Number of errors after which the resolver connected anew.
    told: AtomicUsize,
    last: Mutex<Option<SocketAddrV4>>,
}

impl Resolver {
    fn new(place: &Namespace, is_connected: bool) -> Self {
        Self {
            place: place.clone(),
            is_connected,
            answered: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            told: AtomicUsize::new(0),
            last: Mutex::new(None),
        }
    }

    /// A socket that was given this server.
    fn socket(&self, server: SocketAddrV4) -> Result<UdpSocket> {
        for _ in 0..100 {
            let socket = if self.is_connected {
                connected(&self.place, service(1))?
            } else {
                stage::socket(&self.place, "0.0.0.0:0")?
            };
            socket.set_read_timeout(Some(LOST))?;
            if self.look_up(&socket)? == server {
                return Ok(socket);
            }
        }
        Err(anyhow!("{server} is never chosen"))
    }

    fn look_up(&self, socket: &UdpSocket) -> Result<SocketAddrV4> {
        let (server, from) = if self.is_connected {
            ask_peer(socket)?
        } else {
            ask(socket, service(1).into())?
        };
        ensure!(from == service(1).into(), "the answer is from {from}");
        Ok(server)
    }

    fn run(&self, socket: &UdpSocket, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            match self.look_up(socket) {
                Ok(server) => {
                    let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                    *last = Some(server);
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
                // nginx does the same: its resolver stays connected until a call fails.
                Err(error) if stage::is_told(&error) => {
                    self.told.fetch_add(1, Ordering::Relaxed);
                    self.place.inside(|| socket.connect(service(1)))??;
                }
                Err(_) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    fn last(&self) -> Option<SocketAddrV4> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[test]
fn resolvers_follow_a_name_server_that_goes() -> Result<()> {
    let mut stage = Stage::up("sock-dns")?;
    let place = stage.lab.pod(1, 1).namespace();
    let [near, far] = stage.both();
    let (_, third) = stage.add_server(2)?;
    let mut serving = stage.serve(1, &table([(1, &[near, far][..], None)]))?;
    let resolvers = [true, true, false, false].map(|connected| Resolver::new(&place, connected));
    let sockets = resolvers.iter().map(|resolver| resolver.socket(near));
    let sockets = sockets.collect::<Result<Vec<_>>>()?;
    let go_on = |by: SocketAddrV4| {
        let answered = |it: &Resolver| it.answered.load(Ordering::Relaxed);
        let before = resolvers.each_ref().map(answered);
        wait_until(&format!("answers of {by}"), PATIENCE * 3, || {
            let mut all = resolvers.iter().zip(before);
            all.all(|(it, before)| answered(it) > before + MANY && it.last() == Some(by))
        })
    };
    let count = |of: fn(&Resolver) -> &AtomicUsize| {
        resolvers
            .each_ref()
            .map(|it| of(it).load(Ordering::Relaxed))
    };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let pairs = resolvers.iter().zip(&sockets);
        let stopped = &stop;
        let running = pairs.map(|(it, socket)| scope.spawn(move || it.run(socket, stopped)));
        let running: Vec<_> = running.collect();
        let mut change = || -> Result<()> {
            go_on(near)?;
            // The server first terminates, and is then removed.
            serving.update(&table([(1, &[far][..], None)]))?;
            go_on(far)?;
            stage.lab.pod(1, 2).remove()?;
            go_on(far)?;
            let (lost, told) = (count(|it| &it.lost), count(|it| &it.told));
            ensure!(lost == [0; 4], "lookups are lost: {lost:?}");
            ensure!(told == [1, 1, 0, 0], "told so often: {told:?}");

            // The server disappears at once, and the change is published later.
            stage.lab.pod(2, 1).remove()?;
            serving.update(&table([(1, &[third][..], None)]))?;
            go_on(third)
        };
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        for resolver in running {
            resolver
                .join()
                .map_err(|_| anyhow!("a resolver panicked"))??;
        }
        changed
    })
}
