//! Prometheus metrics (OpenMetrics text), rendered at every scrape from the state of that moment.
//!
//! The data path's counters continue through restarts of the agent, because they are kept in pinned
//! maps.

use std::collections::BTreeMap;
use std::fmt;

use overlay_common::schema::Counter as PacketCounter;
use overlay_common::{Hook, Verdict, socket};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

/// The content type of what [`render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The values of all metrics at one scrape.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Whether the agent is ready.
    pub ready: bool,
    /// Peers programmed in both paths.
    pub peers: usize,
    /// Pods of this node.
    pub pods: usize,
    /// Peers that do not answer over the kernel path.
    pub unreachable_peers: usize,
    /// Leases that were refused as invalid.
    pub rejected_leases: usize,
    /// Chains on hooks of netfilter with foreign rules that packets from pod to pod meet, by the
    /// maker of the rules.
    pub policy_engines: BTreeMap<String, usize>,
    /// When this node's lease ends, in seconds since 1970.
    pub lease_expiry: Option<u64>,
    /// Whether the store answers.
    pub store_reachable: bool,
    /// Rounds of the reconciler since the agent's start. A node where nothing changes has none.
    pub rounds: u64,
    /// Rounds of the reconciler that ended with a problem, since the agent's start.
    pub failed_rounds: u64,
    /// The data path's counters; empty where the fast path is off.
    pub packets: Vec<(Hook, Verdict, PacketCounter)>,
    /// Addresses of Services that sockets are given servers for.
    pub service_addresses: usize,
    /// Number of Services and EndpointSlices of which a part is refused, by reason.
    pub refused_services: BTreeMap<&'static str, usize>,
    /// Number of calls at the socket, by operation and verdict; empty where no programs are at the
    /// socket.
    pub sockets: Vec<(socket::Operation, socket::Verdict, u64)>,
    /// Packets refused on the kernel path, by reason.
    pub guard: Vec<(&'static str, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Packets {
    hook: &'static str,
    kind: &'static str,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sockets {
    operation: &'static str,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug)]
struct DataPath(Scrape);

/// Renders a scrape.
///
/// # Errors
/// Only what a formatter can fail with.
pub fn render(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("overlay");
    let gauges = [
        (
            "ready",
            "Whether every known peer is programmed in both paths",
            i64::from(scrape.ready),
        ),
        (
            "peers",
            "Peers programmed in both paths",
            as_i64(scrape.peers),
        ),
        (
            "peers_unreachable",
            "Peers that do not answer over the kernel path",
            as_i64(scrape.unreachable_peers),
        ),
        ("pods", "Pods of this node", as_i64(scrape.pods)),
        (
            "rejected_leases",
            "Leases refused as invalid",
            as_i64(scrape.rejected_leases),
        ),
        (
            "store_reachable",
            "Whether the store answers",
            i64::from(scrape.store_reachable),
        ),
        (
            "service_addresses",
            "Addresses of Services that sockets are given servers for",
            as_i64(scrape.service_addresses),
        ),
    ];
    for (name, help, value) in gauges {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
    let engines = Family::<[(&str, String); 1], Gauge>::default();
    for (engine, chains) in &scrape.policy_engines {
        engines
            .get_or_create(&[("engine", engine.clone())])
            .set(as_i64(*chains));
    }
    registry.register(
        "policy_engines",
        "Netfilter chains with foreign rules on the way from pod to pod, by who made the rules",
        engines,
    );
    let refused = Family::<Reason, Gauge>::default();
    for (reason, objects) in &scrape.refused_services {
        let gauge = refused.get_or_create(&Reason { reason });
        gauge.set(as_i64(*objects));
    }
    registry.register(
        "refused_services",
        "Services and EndpointSlices that are not taken as they are, by the first reason of each",
        refused,
    );
    let build = Family::<[(&str, &str); 1], Gauge>::default();
    build
        .get_or_create(&[("version", env!("CARGO_PKG_VERSION"))])
        .set(1);
    registry.register("build_info", "The agent's build", build);
    registry.register_collector(Box::new(DataPath(scrape)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn as_i64(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Name of a kind of verdict in labels.
fn kind(verdict: Verdict) -> &'static str {
    use overlay_common::verdict::Kind::{Failed, Fast, Kernel, Refused, Slow};
    match verdict.kind() {
        Fast => "fast",
        Slow => "slow",
        Kernel => "kernel",
        Refused => "refused",
        Failed => "failed",
    }
}

impl DataPath {
    /// One value of every data-path counter, by program and verdict.
    fn encode_column(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        unit: &str,
        value: fn(&PacketCounter) -> u64,
    ) -> Result<(), fmt::Error> {
        let help = format!("{unit} by program and verdict");
        let counter_type = ConstCounter::new(0_u64).metric_type();
        let mut metric = encoder.encode_descriptor(name, &help, None, counter_type)?;
        for (hook, verdict, counter) in &self.0.packets {
            let labels = Packets {
                hook: hook.name(),
                kind: kind(*verdict),
                verdict: verdict.name(),
            };
            ConstCounter::new(value(counter)).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for DataPath {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Self(scrape) = self;
        if let Some(expiry) = scrape.lease_expiry {
            let gauge = ConstGauge::new(i64::try_from(expiry).unwrap_or(i64::MAX));
            let help = "When this node's lease ends unless renewed";
            let metric = encoder.encode_descriptor(
                "lease_expiry_timestamp_seconds",
                help,
                None,
                gauge.metric_type(),
            )?;
            gauge.encode(metric)?;
        }
        for (name, help, rounds) in [
            ("rounds", "Rounds of the reconciler", scrape.rounds),
            (
                "failed_rounds",
                "Rounds of the reconciler that left a problem",
                scrape.failed_rounds,
            ),
        ] {
            let counter = ConstCounter::new(rounds);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        self.encode_column(&mut encoder, "datapath_packets", "Packets", |counter| {
            counter.packets
        })?;
        self.encode_column(&mut encoder, "datapath_bytes", "Bytes", |counter| {
            counter.bytes
        })?;
        let help = "Sockets by operation and verdict, as to Services";
        let counter_type = ConstCounter::new(0_u64).metric_type();
        let mut metric = encoder.encode_descriptor("sockets", help, None, counter_type)?;
        for (operation, verdict, sockets) in &scrape.sockets {
            let labels = Sockets {
                operation: operation.name(),
                verdict: verdict.name(),
            };
            ConstCounter::new(*sockets).encode(metric.encode_family(&labels)?)?;
        }
        let help = "Packets refused on the kernel path";
        let kind_of_metric = ConstCounter::new(0_u64).metric_type();
        let mut metric =
            encoder.encode_descriptor("guard_refused_packets", help, None, kind_of_metric)?;
        for (reason, packets) in &scrape.guard {
            ConstCounter::new(*packets).encode(metric.encode_family(&Reason { reason })?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_gauges_are_rendered() {
        let packets = PacketCounter {
            packets: 7,
            bytes: 700,
        };
        let text = render(Scrape {
            ready: true,
            peers: 2,
            packets: vec![(Hook::PodIn, Verdict::Encapsulated, packets)],
            guard: vec![("unknown_vtep", 3)],
            service_addresses: 4,
            refused_services: [("taken", 5)].into(),
            sockets: vec![(socket::Operation::Connect, socket::Verdict::Translated, 9)],
            policy_engines: [("calico".to_owned(), 2)].into(),
            ..Scrape::default()
        })
        .expect("a formatter that cannot fail");
        for line in [
            "overlay_ready 1",
            "overlay_peers 2",
            "overlay_policy_engines{engine=\"calico\"} 2",
            "overlay_datapath_packets_total{hook=\"pod_in\",kind=\"fast\",\
            verdict=\"encapsulated\"} 7",
            "overlay_service_addresses 4",
            "overlay_refused_services{reason=\"taken\"} 5",
            "overlay_sockets_total{operation=\"connect\",verdict=\"translated\"} 9",
            "overlay_guard_refused_packets_total{reason=\"unknown_vtep\"} 3",
            "# EOF",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} not in\n{text}"
            );
        }
    }
}
