//! The measures.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use overlay_tests::load::{
    Cores, Server, Volume, connections, cpu, datagrams, pin, round_trips, stream,
};
use overlay_tests::traffic::Endpoint;
use serde::Serialize;

use super::class::Class;
use super::underlay::Underlay;

/// A kind of load; each yields several figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// One byte there and back over TCP, both ends on one core.
    TcpRr,
    /// One byte there and back over UDP, both ends on one core.
    UdpRr,
    /// Connect, one byte there and back, close; both ends on one core.
    Connect,
    /// The first packet of a flow against a later one.
    FirstPacket,
    /// One TCP stream, both ends on one core.
    #[value(name = "bulk-1-core")]
    BulkOneCore,
    /// One TCP stream, each end on a core.
    Bulk,
    /// Four TCP streams, senders on one core and receivers on another.
    #[value(name = "bulk-4")]
    Bulk4,
    /// UDP packets of 64 bytes, each end on a core.
    #[value(name = "udp-64")]
    Udp64,
}

impl Measure {
    /// Whether the measure is taken with this underlay and class.
    pub fn applies(self, underlay: Underlay, class: Class) -> bool {
        match (class, underlay) {
            (Class::Direct, _) => true,
            // Other measures do not depend on the kind of the cable, or there is no cable at all.
            (_, Underlay::Wire) => false,
            (_, Underlay::Super) => self != Self::FirstPacket,
        }
    }
}

/// One figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    pub name: &'static str,
    pub unit: &'static str,
    pub value: f64,
}

/// The result of a run.
pub struct Taken {
    pub figures: Vec<Figure>,
    /// Processor time of other processes during the run, as a share of a core.
    pub foreign: f64,
    /// Turns of the calibration loop.
    pub spin: u64,
}

/// The lengths of the parts of a run.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    pub round_trips: Duration,
    pub volume: Duration,
}

/// Size of the payload in an IP packet of 64 bytes.
const SMALL: usize = 64 - 28;

/// Takes a measure once.
pub fn take(measure: Measure, (from, to): (&Endpoint, &Server), lengths: Lengths) -> Result<Taken> {
    let one = Cores::one()?;
    // On a machine with one core both measure the same.
    let two = Cores::two()?.unwrap_or(one);
    let before = speed(one)?;
    let start = cpu::Moment::now()?;
    let (trips, volume) = (lengths.round_trips, lengths.volume);
    let figures = match measure {
        Measure::TcpRr => {
            let trips = round_trips::tcp(from, to, one, trips)?;
            latency(["tcp_rr_p50", "tcp_rr_p99", "tcp_rr_rate"], trips)
        }
        Measure::UdpRr => {
            let trips = round_trips::udp(from, to, one, trips)?;
            latency(["udp_rr_p50", "udp_rr_p99", "udp_rr_rate"], trips)
        }
        Measure::Connect => {
            let trips = connections::tcp(from, to, one, trips)?;
            latency(["connect_p50", "connect_p99", "connect_rate"], trips)
        }
        Measure::FirstPacket => {
            let packets = round_trips::first_packets(from, to, one, trips)?;
            let (first, steady) = (packets.first_p50_us, packets.steady_p50_us);
            vec![
                figure("first_packet_p50", "µs", first),
                figure("later_packet_p50", "µs", steady),
                figure("first_to_later_packet", "", first / steady),
            ]
        }
        Measure::BulkOneCore => volume_of(
            Of::Bytes,
            [
                "bulk_1_core",
                "bulk_1_core_softirq",
                "bulk_1_core_cpu",
                "bulk_1_core_instructions",
            ],
            stream::tcp(from, to, one, 1, volume)?,
        ),
        Measure::Bulk => volume_of(
            Of::Bytes,
            ["bulk", "bulk_softirq", "bulk_cpu", "bulk_instructions"],
            stream::tcp(from, to, two, 1, volume)?,
        ),
        Measure::Bulk4 => volume_of(
            Of::Bytes,
            [
                "bulk_4",
                "bulk_4_softirq",
                "bulk_4_cpu",
                "bulk_4_instructions",
            ],
            stream::tcp(from, to, two, 4, volume)?,
        ),
        Measure::Udp64 => volume_of(
            Of::Packets,
            [
                "udp_64",
                "udp_64_softirq",
                "udp_64_cpu",
                "udp_64_instructions",
            ],
            datagrams::udp(from, to, two, SMALL, volume)?,
        ),
    };
    let foreign = cpu::Moment::now()?.since(&start).foreign;
    Ok(Taken {
        figures,
        foreign,
        // The lower of the two values, because a disturbance may have begun or ended during the
        // run.
        spin: before.min(speed(one)?),
    })
}

/// Turns of the calibration loop on the core of the server.
fn speed(cores: Cores) -> Result<u64> {
    let spin = std::thread::spawn(move || pin(cores.server).map(|()| cpu::spin()));
    spin.join().ok().context("the calibration panicked")?
}

fn figure(name: &'static str, unit: &'static str, value: f64) -> Figure {
    Figure { name, unit, value }
}

fn latency([p50, p99, rate]: [&'static str; 3], trips: round_trips::RoundTrips) -> Vec<Figure> {
    vec![
        figure(p50, "µs", trips.p50_us),
        figure(p99, "µs", trips.p99_us),
        figure(rate, "1/s", trips.per_second),
    ]
}

/// The unit of a volume.
#[derive(Clone, Copy)]
enum Of {
    Bytes,
    Packets,
}

fn volume_of(of: Of, names: [&'static str; 4], volume: Volume) -> Vec<Figure> {
    let [rate, softirq, cpu, instructions] = names;
    // Units and factors; a jiffy is 10 ms.
    let ((unit, per_second), (cost, jiffies), each) = match of {
        Of::Bytes => (("Gbit/s", 8.0 / 1e9), ("jiffies/GB", 1e9), "1/byte"),
        Of::Packets => (("packets/s", 1.0), ("µs/packet", 10_000.0), "1/packet"),
    };
    let mut figures = vec![
        figure(rate, unit, volume.per_second * per_second),
        figure(softirq, cost, volume.cpu.softirq * jiffies / volume.total),
        figure(cpu, cost, volume.cpu.busy * jiffies / volume.total),
    ];
    let counted = volume.instructions.map(|count| count / volume.total);
    figures.extend(counted.map(|count| figure(instructions, each, count)));
    figures
}
