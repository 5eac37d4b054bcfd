//! Load between two namespaces, and what it costs: the generators behind `cargo xtask bench`.
//!
//! Every generator runs in this process, on threads that are pinned to cores, so that whatever else
//! burns the processor is somebody else's ([`cpu::Span`]). Each one is bounded in time, and no
//! answer within [`PATIENCE`] is an error.

pub mod connections;
pub mod cpu;
pub mod datagrams;
pub mod instructions;
pub mod round_trips;
pub mod stream;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::traffic::{Endpoint, PATIENCE};
use cpu::Span;
use instructions::Instructions;

/// The server of a load, and where clients find that server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The port that it listens at, 0 for any.
    pub port: u16,
    /// What clients dial instead: the address of a Service.
    pub service: Option<SocketAddr>,
}

impl From<Endpoint> for Server {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            port: 0,
            service: None,
        }
    }
}

impl Server {
    fn address(&self) -> SocketAddr {
        SocketAddr::from((self.endpoint.address, self.port))
    }

    fn listen(&self) -> Result<TcpListener> {
        let here = self.address();
        let listener = self.endpoint.namespace.inside(|| TcpListener::bind(here))?;
        listener.with_context(|| format!("listen at {here}"))
    }

    /// What clients dial, of a server that listens at `here`.
    fn dialled(&self, here: std::io::Result<SocketAddr>) -> Result<SocketAddr> {
        let here = here.context("ask for the port")?;
        Ok(self.service.unwrap_or(here))
    }
}

/// Cores for the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// For who asks or sends.
    pub client: usize,
    /// For who answers or receives.
    pub server: usize,
}

impl Cores {
    /// Both ends on one core, the last that this process may use: interrupts prefer the first.
    ///
    /// # Errors
    /// When the kernel does not tell which cores there are.
    pub fn one() -> Result<Self> {
        let last = usable()?.last().copied().context("no core to run on")?;
        Ok(Self {
            client: last,
            server: last,
        })
    }

    /// Each end on a core of its own; nothing where there is only one.
    ///
    /// # Errors
    /// When the kernel does not tell which cores there are.
    pub fn two() -> Result<Option<Self>> {
        let cores = usable()?;
        Ok(match cores[..] {
            [.., client, server] => Some(Self { client, server }),
            _ => None,
        })
    }
}

/// The cores that this process may use.
fn usable() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
    Ok((0..CpuSet::count())
        .filter(|core| set.is_set(*core).unwrap_or(false))
        .collect())
}

/// Pins the calling thread to a core.
///
/// # Errors
/// When the core does not exist or may not be used.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("pin a thread to core {core}"))
}

/// The least of sorted times that `share` of a hundred do not exceed, in microseconds. Of fewer
/// than a hundred the longest is the 99th percentile (nearest rank).
///
/// # Panics
/// When there are none.
pub fn percentile(sorted: &[Duration], share: usize) -> f64 {
    let rank = (sorted.len() * share).div_ceil(100).max(1);
    sorted[rank - 1].as_secs_f64() * 1e6
}

/// What went through, per second, and the processor time of the whole machine meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Volume {
    /// Bytes or packets per second that arrived.
    pub per_second: f64,
    /// The same in all.
    pub total: f64,
    /// What it cost.
    pub cpu: Span,
    /// Instructions of the whole machine meanwhile, where it counts them.
    pub instructions: Option<f64>,
}

/// How long a flood runs before it counts.
const WARM_UP: Duration = Duration::from_millis(200);

/// Lets a flood warm up and watches `arrived` for `duration`.
fn watch(duration: Duration, arrived: impl Fn() -> u64) -> Result<Volume> {
    thread::sleep(WARM_UP);
    let mut instructions = Instructions::count();
    let (start, before) = (cpu::Moment::now()?, arrived());
    thread::sleep(duration);
    let (after, end) = (arrived(), cpu::Moment::now()?);
    let instructions = instructions.as_mut().and_then(Instructions::so_far);
    let cpu = end.since(&start);
    let total = (after - before) as f64;
    Ok(Volume {
        per_second: total / cpu.seconds,
        total,
        cpu,
        instructions: instructions.map(|count| count as f64),
    })
}

/// The answer of a thread, a panic being an error like others.
fn joined<T>(handle: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    handle
        .join()
        .map_err(|_| anyhow!("a load generator panicked"))?
}

/// A UDP socket of an endpoint that does not wait forever.
fn udp_socket(at: &Endpoint, port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::from((at.address, port));
    let socket = at
        .namespace
        .inside(|| UdpSocket::bind(address))?
        .with_context(|| format!("bind {address}"))?;
    socket
        .set_read_timeout(Some(PATIENCE))
        .context("set a timeout")?;
    Ok(socket)
}
