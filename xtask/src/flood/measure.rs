//! The rounds.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use overlay_tests::hostile::{Flood, Kind, Pace, Scene};
use overlay_tests::load::{Cores, datagrams, stream};
use overlay_tests::traffic::Endpoint;
use overlay_tests::{Lab, Options, Pod, fast_path, interrupt};
use serde::Serialize;

use crate::bench::Machine;
use crate::shell;

/// Size of an honest datagram in bytes.
const DATAGRAM: usize = 64;

/// The measurements, and their lengths.
pub struct Plan {
    pub kinds: Vec<Kind>,
    pub rounds: usize,
    pub length: Duration,
    /// Packets of the flood per second; `None` for the highest possible rate.
    pub rate: Option<u32>,
}

/// How a node refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The fast path, at the NIC.
    Xdp,
    /// The fast path, behind the NIC.
    Tc,
    /// The packet filter.
    Kernel,
}

impl Way {
    const ALL: [Self; 3] = [Self::Xdp, Self::Tc, Self::Kernel];

    fn flags(self) -> [&'static str; 2] {
        match self {
            Self::Xdp => ["--fast-path=auto", "--xdp=on"],
            Self::Tc => ["--fast-path=auto", "--xdp=off"],
            Self::Kernel => ["--fast-path=off", "--xdp=off"],
        }
    }
}

/// The core on which the flood is sent and received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Another core than the honest traffic's.
    OtherCore,
    /// The core of the honest traffic.
    SameCore,
}

/// The traffic of honest pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Datagrams of 64 bytes received per second.
    UdpPackets,
    /// Bytes per second of one TCP stream.
    TcpBytes,
}

/// One series: its conditions, and its samples of every round.
#[derive(Debug, Serialize)]
pub struct Series {
    pub kind: &'static str,
    pub way: Way,
    pub place: Place,
    pub measure: Measure,
    #[serde(flatten)]
    pub samples: Samples,
}

/// The samples of a series, one a round.
#[derive(Debug, Default, Serialize)]
pub struct Samples {
    /// Honest rate alone, per second.
    pub alone: Vec<f64>,
    /// Honest rate under the flood, as a share of the rate alone.
    pub kept: Vec<f64>,
    /// Honest rate under the control, as a share of the rate alone.
    pub kept_under_control: Vec<f64>,
    /// Packets of the flood per second.
    pub flood: Vec<f64>,
    /// Packets of the control per second.
    pub control: Vec<f64>,
    /// Refused packets, as a share of the flood's packets.
    pub refused: Vec<f64>,
}

/// All findings.
#[derive(Debug, Serialize)]
pub struct Findings {
    pub machine: Machine,
    pub series: Vec<Series>,
}

/// Measures everything.
pub fn run(plan: &Plan) -> Result<Findings> {
    let machine = Machine::describe();
    let lab = Lab::up(Options::for_test("flood"))?;
    let measured = measure(&lab, plan);
    // The lab is removed in any case; where both fail, the measurement's error is reported.
    let down = lab.down();
    let series = measured.and_then(|series| down.map(|()| series))?;
    Ok(Findings { machine, series })
}

type Key = (&'static str, Way, Place, Measure);

fn measure(lab: &Lab, plan: &Plan) -> Result<Vec<Series>> {
    Scene::add_third(lab)?;
    let scene = Scene::of(lab)?;
    let cores = Cores::one()?;
    let other = Cores::two()?.map(|two| two.client);
    let places: Vec<(Place, usize)> = [
        (Place::OtherCore, other),
        (Place::SameCore, Some(cores.server)),
    ]
    .into_iter()
    .filter_map(|(place, core)| Some((place, core?)))
    .collect();
    let mut series: BTreeMap<Key, Samples> = BTreeMap::new();
    for round in 1..=plan.rounds {
        for way in Way::ALL {
            shell::progress(&format!("round {round} of {}: {way:?}", plan.rounds));
            switch(lab, way)?;
            for kind in &plan.kinds {
                for (place, core) in &places {
                    for measure in [Measure::UdpPackets, Measure::TcpBytes] {
                        interrupt::check()?;
                        let key = (kind.name(), way, *place, measure);
                        let samples = series.entry(key).or_default();
                        let pace = Pace {
                            rate: plan.rate,
                            core: Some(*core),
                        };
                        let stage = Stage {
                            lab,
                            scene: &scene,
                            cores,
                            pace,
                            length: plan.length,
                        };
                        stage.sample(*kind, measure, samples)?;
                    }
                }
            }
        }
    }
    let named = |((kind, way, place, measure), samples)| Series {
        kind,
        way,
        place,
        measure,
        samples,
    };
    Ok(series.into_iter().map(named).collect())
}

/// Makes both nodes refuse in one way.
fn switch(lab: &Lab, way: Way) -> Result<()> {
    for node in lab.nodes() {
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&way.flags())?;
        if way != Way::Kernel {
            fast_path::wait_serving(&node)?;
        }
    }
    Ok(())
}

struct Stage<'a> {
    lab: &'a Lab,
    scene: &'a Scene,
    cores: Cores,
    pace: Pace,
    length: Duration,
}

impl Stage<'_> {
    /// Measures alone, under the flood, and under the control.
    fn sample(&self, kind: Kind, measure: Measure, samples: &mut Samples) -> Result<()> {
        let alone = self.honest(measure)?;
        let before = self.refused()?;
        let (flooded, flood) = self.beside(kind, measure)?;
        let refused = self.refused()? - before;
        let (controlled, control) = self.beside(Kind::Control, measure)?;
        samples.alone.push(alone);
        samples.kept.push(flooded / alone);
        samples.kept_under_control.push(controlled / alone);
        samples.flood.push(flood.rate());
        samples.control.push(control.rate());
        samples
            .refused
            .push(refused as f64 / flood.frames.max(1) as f64);
        Ok(())
    }

    fn beside(&self, kind: Kind, measure: Measure) -> Result<(f64, overlay_tests::hostile::Sent)> {
        let flood = Flood::start(self.lab, self.scene, kind, self.pace)?;
        let honest = self.honest(measure)?;
        Ok((honest, flood.finish()?))
    }

    /// The rate of a pod of the other node that sends to a pod of the attacked node.
    fn honest(&self, measure: Measure) -> Result<f64> {
        let (from, to) = (
            endpoint(&self.lab.pod(2, 2)),
            endpoint(&self.lab.pod(1, 2)).into(),
        );
        let volume = match measure {
            Measure::UdpPackets => datagrams::udp(&from, &to, self.cores, DATAGRAM, self.length),
            Measure::TcpBytes => stream::tcp(&from, &to, self.cores, 1, self.length),
        };
        Ok(volume?.per_second)
    }

    /// Packets that the attacked node has refused so far.
    fn refused(&self) -> Result<u64> {
        let status = self
            .lab
            .node(1)
            .json(["overlayctl", "status", "--output", "json"])?;
        let reasons = status["refused"]
            .as_object()
            .context("no refusals in the status")?;
        let paths = reasons.values().filter_map(|paths| paths.as_object());
        let counts = paths.flat_map(|paths| paths.values());
        Ok(counts.filter_map(serde_json::Value::as_u64).sum())
    }
}

fn endpoint(pod: &Pod) -> Endpoint {
    Endpoint {
        name: pod.name().to_owned(),
        namespace: pod.namespace(),
        address: pod.address(),
    }
}
