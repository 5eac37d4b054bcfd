//! The cost of an agent that gives sockets servers of many Services, and its speed in following a
//! change of a Service.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, MapData, MapError};
use overlay_common::socket::{Frontend, MAX_FRONTENDS, MAX_SERVERS, Service, TCP, mapped};
use overlay_tests::wait::wait_for;
use overlay_tests::{Lab, Namespace, Node, Options, interrupt};
use serde::Serialize;
use serde_json::json;

use super::etcd::Etcd;
use super::leases;
use super::pending::Times;
use super::pinned;
use super::process::memory;
use crate::bench::{Machine, short};
use crate::shell;

/// Longest time until an agent serves all Services.
const READY: Duration = Duration::from_secs(300);
/// Longest time until one change is followed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time between two changes. The time is no divisor of an agent's own periods.
const APART: Duration = Duration::from_millis(137);
/// Number of endpoints in one EndpointSlice, as in Kubernetes.
const PER_SLICE: u32 = 100;
/// Default number of endpoints of each Service.
const USUAL: u32 = 5;

/// The number of Services, and the number of endpoints behind all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    services: u32,
    endpoints: u32,
}

impl Size {
    /// The size for a trial run.
    pub const SMALL: Self = Self {
        services: 100,
        endpoints: 500,
    };
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (services, endpoints) = match text.split_once(',') {
            Some((services, endpoints)) => (services.parse()?, Some(endpoints.parse()?)),
            None => (text.parse()?, None),
        };
        // A change needs room for the old and the new set.
        let most = MAX_SERVERS / 2;
        let endpoints = endpoints.unwrap_or(USUAL.saturating_mul(services));
        ensure!(
            (1..=MAX_FRONTENDS).contains(&services) && (services..=most).contains(&endpoints),
            "want 1 to {MAX_FRONTENDS} Services, and as many endpoints or more, {most} at most"
        );
        Ok(Self {
            services,
            endpoints,
        })
    }
}

/// The findings.
#[derive(Serialize)]
pub struct ServicesMeasured {
    machine: Machine,
    services: u32,
    endpoints: u32,
    /// Time from the start of the agent until it serves all Services.
    load_seconds: f64,
    /// Resident memory at that time, and the maximum until the end.
    memory_mib: f64,
    most_memory_mib: f64,
    /// Memory of the maps, as counted by the kernel.
    maps_mib: f64,
    /// Time from the write of a slice until sockets get the new endpoints.
    change: Times,
}

impl fmt::Display for ServicesMeasured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            machine, change, ..
        } = self;
        let ms = |time: Option<f64>| time.map_or_else(|| "–".to_owned(), short);
        writeln!(f, "{machine}\nload before: {}\n", machine.load)?;
        for (what, value) in [
            ("Services", self.services.to_string()),
            ("endpoints", self.endpoints.to_string()),
            ("served, s", short(self.load_seconds)),
            ("resident, MiB", short(self.memory_mib)),
            ("resident at most, MiB", short(self.most_memory_mib)),
            ("maps, MiB", short(self.maps_mib)),
            ("one change, ms: p50", ms(change.p50_ms)),
            ("one change, ms: p99", ms(change.p99_ms)),
            ("one change, ms: most", ms(change.most_ms)),
            (
                "changes, and missing ones",
                format!("{}, {}", change.count, change.missing),
            ),
        ] {
            writeln!(f, "{what:28}{value:>12}")?;
        }
        Ok(())
    }
}

/// Measures an agent with `size` Services in its etcd, and `changes` changes.
pub fn measure(bin_dir: PathBuf, size: Size, changes: u32) -> Result<ServicesMeasured> {
    let machine = Machine::describe();
    let lab = Lab::up(Options {
        nodes: 1,
        pods: 0,
        start_agents: false,
        apart: true,
        network: leases::network(),
        bin_dir,
        ..Options::for_test("scale")
    })?;
    let node = lab.node(1);
    let etcd = Etcd::of(&lab)?;
    let Size {
        services,
        endpoints,
    } = size;
    shell::progress(&format!("{services} Services, {endpoints} endpoints"));
    let all = (0..services).map(move |number| Invented { number, size });
    etcd.put(all.clone().map(|it| (it.key(), it.value())))?;
    etcd.put(all.flat_map(|it| it.slices(PORT)))?;
    let start = Instant::now();
    let process = node.start_agent_unready(&[])?.process;
    let maps = wait_for("all Services to be served", READY, || {
        let maps = FrontendsMap::open(&node.namespace()).ok().flatten()?;
        (maps.len() == services as usize && is_at_the_socket(&node)).then_some(maps)
    })
    .with_context(|| node.agent_log_tail())?;
    let load_seconds = start.elapsed().as_secs_f64();
    let (memory_mib, _) = memory(&process)?;
    let maps_mib = maps_mib(&node)?;
    let mut took = Vec::new();
    let mut missing = 0;
    for change in 0..changes {
        // Each change is of another Service.
        let number = (u64::from(change) * 7919 % u64::from(services)) as u32;
        let invented = Invented { number, size };
        let before = maps.set(invented.frontend())?;
        let start = Instant::now();
        // The port changes, so that all endpoints of the Service are new.
        let port = PORT + 1 + (change % 1000) as u16;
        etcd.put(invented.slices(port).into_iter().take(1))?;
        loop {
            if maps.set(invented.frontend())? != before {
                took.push(start.elapsed());
                break;
            }
            if start.elapsed() > PATIENCE {
                missing += 1;
                break;
            }
            interrupt::check()?;
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(APART);
    }
    let (_, most_memory_mib) = memory(&process)?;
    lab.down()?;
    Ok(ServicesMeasured {
        machine,
        services,
        endpoints,
        load_seconds,
        memory_mib,
        most_memory_mib,
        maps_mib,
        change: Times::of(took, missing),
    })
}

fn is_at_the_socket(node: &Node) -> bool {
    let answer = node.http_get("/readyz");
    answer.is_ok_and(|answer| answer.status == 200 && answer.body.contains("at the socket"))
}

/// The port of every Service, and that of its endpoints.
const FRONT: u16 = 80;
const PORT: u16 = 8080;

/// An invented Service.
#[derive(Clone, Copy)]
struct Invented {
    /// Number, from zero.
    number: u32,
    size: Size,
}

impl Invented {
    fn address(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 1).to_bits() + self.number)
    }

    fn frontend(self) -> Frontend {
        Frontend {
            address: mapped(self.address().octets()),
            port: FRONT,
            transport: TCP,
        }
    }

    fn key(self) -> String {
        format!("/coreos.com/network/services/shop.web-{}", self.number)
    }

    fn value(self) -> String {
        let ports = json!([{"name": "http", "port": FRONT}]);
        json!({"spec": {"clusterIP": self.address(), "ports": ports}}).to_string()
    }

    /// The Service's endpoints, by their number among all.
    fn endpoints(self) -> Vec<Ipv4Addr> {
        let Size {
            services,
            endpoints,
        } = self.size;
        let mine = (self.number..endpoints).step_by(services as usize);
        let first = Ipv4Addr::new(10, 64, 0, 1).to_bits();
        mine.map(|number| Ipv4Addr::from_bits(first + number))
            .collect()
    }

    /// The Service's EndpointSlices: keys and values.
    fn slices(self, port: u16) -> Vec<(String, String)> {
        let endpoints = self.endpoints();
        let slices = (0..).zip(endpoints.chunks(PER_SLICE as usize));
        let slice = |(slice, some): (u32, &[Ipv4Addr])| {
            let number = self.number;
            let key = format!("/coreos.com/network/endpointslices/shop.web-{number}-{slice}");
            let endpoint = |address: &Ipv4Addr| {
                json!({
                    "addresses": [address], "conditions": {"ready": true}, "nodeName": "n2",
                })
            };
            let value = json!({
                "metadata": {"labels": {"kubernetes.io/service-name": format!("web-{number}")}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": port}],
                "endpoints": some.iter().map(endpoint).collect::<Vec<_>>(),
            });
            (key, value.to_string())
        };
        slices.map(slice).collect()
    }
}

/// The pinned map of Services of one node.
struct FrontendsMap(HashMap<MapData, Frontend, Service>);

impl FrontendsMap {
    /// Opens the map of a node; `None` where no agent has pinned the map yet.
    fn open(node: &Namespace) -> Result<Option<Self>> {
        Ok(pinned::open(node, "ov_services")?.map(Self))
    }

    fn len(&self) -> usize {
        self.0.keys().filter(Result::is_ok).count()
    }

    /// The set of servers of a frontend.
    fn set(&self, frontend: Frontend) -> Result<Option<u64>> {
        match self.0.get(&frontend, 0) {
            Ok(service) => Ok(Some(service.set)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("look a Service up"),
        }
    }
}

/// The memory of the maps of Services.
fn maps_mib(node: &Node) -> Result<f64> {
    let mut bytes = 0;
    for map in ["ov_services", "ov_servers"] {
        let pin = pinned::path(map).display().to_string();
        let shown = node.json(["bpftool", "-j", "map", "show", "pinned", &pin])?;
        match shown["bytes_memlock"].as_u64() {
            Some(more) => bytes += more,
            None => bail!("bpftool does not tell what {map} takes: {shown}"),
        }
    }
    Ok(bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_shared_out() {
        let size: Size = "3,8".parse().expect("a size");
        let of = |number| Invented { number, size }.endpoints();
        let all: Vec<_> = (0..3).flat_map(of).collect();
        assert_eq!((of(0).len(), of(2).len(), all.len()), (3, 2, 8));
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), 8);
        let size: Size = "10".parse().expect("a size");
        assert_eq!(size.endpoints, 50);
        for bad in ["", "0", "5,4", "10,", "70000", "10,999999"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        let size: Size = "1,250".parse().expect("a size");
        assert_eq!(Invented { number: 0, size }.slices(1).len(), 3);
    }
}
