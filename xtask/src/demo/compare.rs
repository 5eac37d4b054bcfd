//! The same traffic with and without the fast path.

use anyhow::Result;
use nix::sys::signal::Signal;
use overlay_tests::measure::{self, Latency};
use overlay_tests::reach::of_pod;
use overlay_tests::{Lab, Pod};
use serde::Serialize;

use crate::lab::table;

/// Number of round trips in one latency measurement.
const ROUND_TRIPS: usize = 5000;
/// Duration of one throughput measurement in seconds.
const SECONDS: u32 = 3;

/// Both data paths, measured in the same way.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub fast: Measured,
    pub kernel: Measured,
}

/// The figures of one data path.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub same_node: Figures,
    pub across_nodes: Figures,
}

/// The figures between two pods.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub latency: Latency,
    /// Throughput of one TCP stream.
    pub gigabits_per_second: f64,
}

impl Comparison {
    /// A table with the two paths side by side.
    pub fn render(&self) -> String {
        let mut shown = table::table([
            "",
            "RTT p50",
            "RTT p99",
            "THROUGHPUT",
            "(kernel path)",
            "",
            "",
            "GAIN",
        ]);
        let rows = [
            ("same node", &self.fast.same_node, &self.kernel.same_node),
            (
                "across nodes",
                &self.fast.across_nodes,
                &self.kernel.across_nodes,
            ),
        ];
        for (name, fast, kernel) in rows {
            shown.add_row([
                name.to_owned(),
                format!("{:.1} µs", fast.latency.p50_us),
                format!("{:.1} µs", fast.latency.p99_us),
                format!("{:.2} Gbit/s", fast.gigabits_per_second),
                format!("{:.1} µs", kernel.latency.p50_us),
                format!("{:.1} µs", kernel.latency.p99_us),
                format!("{:.2} Gbit/s", kernel.gigabits_per_second),
                format!(
                    "RTT ×{:.2}, throughput ×{:.2}",
                    kernel.latency.p50_us / fast.latency.p50_us,
                    fast.gigabits_per_second / kernel.gigabits_per_second
                ),
            ]);
        }
        format!("\n{shown}")
    }
}

/// Measures between two pods of one node and two pods of two nodes.
pub fn measure(lab: &Lab) -> Result<Measured> {
    // The nodes have learned path MTUs, from ICMP about masqueraded pods, which would slow the
    // kernel path down.
    for node in lab.nodes() {
        node.run(["ip", "route", "flush", "cache"])?;
    }
    Ok(Measured {
        same_node: figures(&lab.pod(1, 1), &lab.pod(1, 2))?,
        across_nodes: figures(&lab.pod(1, 1), &lab.pod(2, 1))?,
    })
}

fn figures(from: &Pod, to: &Pod) -> Result<Figures> {
    Ok(Figures {
        latency: measure::latency(&of_pod(from), &of_pod(to), ROUND_TRIPS)?,
        gigabits_per_second: measure::throughput(from, to, SECONDS)?,
    })
}

/// Restarts every agent with another `--fast-path`.
pub fn restart_agents(lab: &Lab, fast_path: &str) -> Result<()> {
    let flag = format!("--fast-path={fast_path}");
    for node in lab.nodes() {
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&[&flag])?;
    }
    lab.wait_converged()
}
