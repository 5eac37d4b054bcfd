//! Load between two namespaces, and its cost: the generators behind `cargo xtask bench`.
//!
//! Every generator runs in this process, on threads that are pinned to cores, so that all other
//! user time belongs to other processes ([`cpu::Span`]). Each generator is bounded in time, and an
//! answer that takes longer than [`PATIENCE`] is an error.

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

/// The server of a load, and its address for clients.
#[derive(Clone, Debug)]
pub struct Server {
    /// The endpoint at which the server listens.
    pub endpoint: Endpoint,
    /// The port at which the server listens, 0 for any.
    pub port: u16,
    /// The address that clients use instead: that of a Service.
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

    /// The address that clients use, for a server that listens at `here`.
    fn dialled(&self, here: std::io::Result<SocketAddr>) -> Result<SocketAddr> {
        let here = here.context("ask for the port")?;
        Ok(self.service.unwrap_or(here))
    }
}

/// Cores for the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The core of the end that requests or sends.
    pub client: usize,
    /// The core of the end that answers or receives.
    pub server: usize,
}

impl Cores {
    /// Both ends on one core, the last that this process may use, because interrupts prefer the
    /// first.
    ///
    /// # Errors
    /// When the kernel's list of cores cannot be read.
    pub fn one() -> Result<Self> {
        let last = usable()?.last().copied().context("no core to run on")?;
        Ok(Self {
            client: last,
            server: last,
        })
    }

    /// Each end on a separate core; `None` where there is only one.
    ///
    /// # Errors
    /// When the kernel's list of cores cannot be read.
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

/// The shortest of sorted times that `share` of a hundred do not exceed, in microseconds. For fewer
/// than a hundred times the 99th percentile is the longest (nearest rank).
///
/// # Panics
/// When there are no times.
pub fn percentile(sorted: &[Duration], share: usize) -> f64 {
    let rank = (sorted.len() * share).div_ceil(100).max(1);
    sorted[rank - 1].as_secs_f64() * 1e6
}

/// The traffic that arrived, per second, and the processor time of the whole machine during that.
#[derive(Clone, Copy, Debug)]
pub struct Volume {
    /// Bytes or packets per second that arrived.
    pub per_second: f64,
    /// Bytes or packets that arrived in total.
    pub total: f64,
    /// The processor time.
    pub cpu: Span,
    /// Instructions of the whole machine in the same time, where the machine counts instructions.
    pub instructions: Option<f64>,
}

/// Duration of a flood before its measurement begins.
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

/// The result of a thread; a panic is an error like others.
fn joined<T>(handle: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    handle
        .join()
        .map_err(|_| anyhow!("a load generator panicked"))?
}

/// A UDP socket of an endpoint with a timeout for receiving.
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
