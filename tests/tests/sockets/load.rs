//! Connections that are opened continuously.

use std::io::Read as _;
use std::net::{TcpStream, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
use nix::sys::time::{TimeVal, TimeValLike as _};
use overlay_tests::{Namespace, wait_until};

use super::stage::{PATIENCE, ask, ask_peer, service};

/// The Service whose connections are accepted, and closed, by themselves.
pub const ACCEPTED: u8 = 3;
/// The Service that answers datagrams.
pub const ECHOED: u8 = 1;
/// The ports that a client uses one after the other. Connection tracking remembers a port for some
/// time, two minutes at most: a second use of the port within that time could meet the entry of the
/// first, with kube-proxy alone, too.
const PORTS: Range<u16> = 10_000..32_000;
/// The pause after a round, so that no port is used again within that time.
const PACE: Duration = Duration::from_millis(11);
/// Most failures in a report.
const TOLD: usize = 5;

/// Connects from one place to Services, one socket after the other.
struct Client {
    place: Namespace,
    /// Rounds: in each, a connection, a connected and an unconnected socket of datagrams.
    rounds: AtomicUsize,
    /// Whether rounds have connections.
    connects: AtomicBool,
    failures: Mutex<Vec<String>>,
}

impl Client {
    fn run(&self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let round = self.rounds.load(Ordering::Relaxed);
            let port = PORTS.start + u16::try_from(round % (PORTS.len() / 2))? * 2;
            let connection = if self.connects.load(Ordering::Relaxed) {
                Self::connection(port)
            } else {
                Ok(())
            };
            for (what, done) in [
                ("connection", connection),
                ("connected socket", Self::connected(port)),
                ("unconnected socket", Self::unconnected(port + 1)),
            ] {
                if let Err(error) = done {
                    let failure = format!("{}, {round}, {what}: {error:#}", self.place.name());
                    let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                    failures.push(failure);
                }
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
            thread::sleep(PACE);
        }
        Ok(())
    }

    fn connection(port: u16) -> Result<()> {
        let kind = (AddressFamily::Inet, SockType::Stream);
        let socket = socket::socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, None)?;
        let patience = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
        socket::setsockopt(&socket, SendTimeout, &patience)?;
        let here = SockaddrIn::new(0, 0, 0, 0, port);
        socket::bind(socket.as_raw_fd(), &here).context("bind")?;
        let service = SockaddrIn::from(service(ACCEPTED));
        socket::connect(socket.as_raw_fd(), &service).context("connect")?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = stream.read(&mut [0]).context("read to the end")?;
        ensure!(length == 0, "the server has spoken");
        Ok(())
    }

    /// A socket in the thread's network namespace.
    fn socket(port: u16) -> Result<UdpSocket> {
        let socket = UdpSocket::bind(("0.0.0.0", port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    fn connected(port: u16) -> Result<()> {
        let socket = Self::socket(port)?;
        socket.connect(service(ECHOED))?;
        let (_, from) = ask_peer(&socket)?;
        ensure!(from == service(ECHOED).into(), "the answer is from {from}");
        Ok(())
    }

    fn unconnected(port: u16) -> Result<()> {
        let socket = Self::socket(port)?;
        let (_, from) = ask(&socket, service(ECHOED).into())?;
        ensure!(from == service(ECHOED).into(), "the answer is from {from}");
        Ok(())
    }
}

/// Several clients at once.
pub struct Load(Vec<Client>);

impl Load {
    /// Clients in these places.
    pub fn of(places: impl IntoIterator<Item = Namespace>) -> Self {
        let places = places.into_iter();
        let clients = places.map(|place| Client {
            place,
            rounds: AtomicUsize::new(0),
            connects: AtomicBool::new(true),
            failures: Mutex::default(),
        });
        Self(clients.collect())
    }

    /// From now on the clients send datagrams only, without connections.
    pub fn only_datagrams(&self) {
        for client in &self.0 {
            client.connects.store(false, Ordering::Relaxed);
        }
    }

    /// Runs during `work`. No client may fail.
    pub fn beside(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let run =
                |client: &Client| -> Result<()> { client.place.inside(|| client.run(&stop))? };
            let running = self.0.iter().map(|client| scope.spawn(move || run(client)));
            let running: Vec<_> = running.collect();
            let worked = work();
            stop.store(true, Ordering::Relaxed);
            for client in running {
                client.join().map_err(|_| anyhow!("a client panicked"))??;
            }
            self.nobody_failed()?;
            worked
        })
    }

    /// Waits until each client has begun and ended a round.
    pub fn go_on(&self, when: &str) -> Result<()> {
        let rounds = |client: &Client| client.rounds.load(Ordering::Relaxed);
        let before: Vec<_> = self.0.iter().map(rounds).collect();
        wait_until(&format!("connections {when}"), PATIENCE * 4, || {
            let mut clients = self.0.iter().zip(&before);
            // The round that ends first may have begun before.
            clients.all(|(client, before)| rounds(client) > before + 1)
        })?;
        self.nobody_failed().with_context(|| when.to_owned())
    }

    fn nobody_failed(&self) -> Result<()> {
        let failures = self.0.iter().flat_map(|client| {
            let failures = client.failures.lock();
            failures.unwrap_or_else(PoisonError::into_inner).clone()
        });
        let failures: Vec<_> = failures.collect();
        let rounds = self.0.iter();
        let rounds: usize = rounds.map(|it| it.rounds.load(Ordering::Relaxed)).sum();
        let told = failures.iter().take(TOLD).cloned().collect::<Vec<_>>();
        let told = told.join("\n");
        let count = failures.len();
        ensure!(
            count == 0,
            "{count} failures in {rounds} rounds, first:\n{told}"
        );
        Ok(())
    }
}
