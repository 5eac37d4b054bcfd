//! Latency and throughput between two namespaces.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;

use crate::Pod;
use crate::load::percentile;
use crate::traffic::{Endpoint, PATIENCE};

/// Number of round trips before the measurement.
const WARM_UP: usize = 200;

/// Round-trip times of one byte over an open TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Half of the round trips took at most this, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 took at most this, in microseconds.
    pub p99_us: f64,
    /// Number of measured round trips.
    pub round_trips: usize,
}

/// Measures `count` round trips.
///
/// # Errors
/// When the two cannot connect, or the connection breaks.
pub fn latency(from: &Endpoint, to: &Endpoint, count: usize) -> Result<Latency> {
    ensure!(count > 0, "nothing to measure");
    let here = SocketAddr::from((to.address, 0));
    let listener = to
        .namespace
        .inside(|| TcpListener::bind(here))?
        .context("listen")?;
    let target = listener.local_addr().context("ask for the port")?;
    let mut client = from
        .namespace
        .inside(|| TcpStream::connect_timeout(&target, PATIENCE))?
        .with_context(|| format!("connect to {target}"))?;
    let (mut server, _) = listener.accept().context("accept")?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    let mut times = thread::scope(|scope| -> Result<Vec<Duration>> {
        let echo = scope.spawn(move || -> std::io::Result<()> {
            let mut byte = [0];
            while server.read(&mut byte)? == 1 {
                server.write_all(&byte)?;
            }
            Ok(())
        });
        let times = round_trips(&mut client, WARM_UP + count);
        // This ends the echo, whatever the result of the measurement.
        drop(client);
        echo.join()
            .map_err(|_| anyhow!("the echo panicked"))?
            .context("echo")?;
        times
    })?;
    let mut times = times.split_off(WARM_UP);
    times.sort_unstable();
    Ok(Latency {
        p50_us: percentile(&times, 50),
        p99_us: percentile(&times, 99),
        round_trips: times.len(),
    })
}

fn round_trips(client: &mut TcpStream, count: usize) -> Result<Vec<Duration>> {
    let mut byte = [7];
    (0..count)
        .map(|_| {
            let start = Instant::now();
            client.write_all(&byte)?;
            client.read_exact(&mut byte)?;
            Ok(start.elapsed())
        })
        .collect()
}

/// Port of iperf3 in the receiving pod.
const IPERF_PORT: &str = "5201";

/// Sends one TCP stream with iperf3 for `seconds` and returns the rate at the receiver, in gigabits
/// per second.
///
/// # Errors
/// When iperf3 is missing or cannot connect.
pub fn throughput(from: &Pod, to: &Pod, seconds: u32) -> Result<f64> {
    let server = to.spawn(["iperf3", "--server", "--one-off", "--port", IPERF_PORT])?;
    let listening = format!(":{IPERF_PORT}");
    crate::wait_until("iperf3 to listen", PATIENCE, || {
        to.run(["ss", "-Hltn"])
            .is_ok_and(|sockets| sockets.contains(&listening))
    })?;
    let (target, seconds) = (to.address().to_string(), seconds.to_string());
    let line = [
        "iperf3", "--client", &target, "--port", IPERF_PORT, "--time", &seconds, "--json",
    ];
    let output = from.exec(line)?;
    drop(server);
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("understand iperf3")?;
    if let Some(error) = answer["error"].as_str() {
        return Err(anyhow!("iperf3: {error}"));
    }
    let bits = answer["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.context("iperf3 reports no throughput")? / 1e9)
}
