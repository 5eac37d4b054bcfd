//! Under every hostile stream, no forged packet is delivered and honest traffic continues: its
//! connection stays open, and at most a tenth of its datagrams is lost in either direction. `cargo
//! xtask flood` measures rates.

mod log;
mod xdp;

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::hostile::{Flood, Kind, Pace, Scene, is_marked};
use overlay_tests::pace::{Loss, Traffic};
use overlay_tests::packet::RawSocket;
use overlay_tests::traffic::Endpoint;
use overlay_tests::wait::slowness;
use overlay_tests::{Lab, Node, Options, Pod, wait_until};

const PATIENCE: Duration = Duration::from_secs(10);
/// Duration of each stream.
const STREAM: Duration = Duration::from_millis(500);
/// Frames per second: enough to overlap with honest packets everywhere, but not too many for a busy
/// machine.
const RATE: u32 = 5000;
/// One of this many honest datagrams may be lost.
const MOST_LOST: u64 = 10;
/// Time of silence in the lab after which a frame that has not arrived counts as refused.
const QUIET: Duration = Duration::from_millis(200);

fn lab(name: &str, fast_path: &str, arguments: &[&str]) -> Result<Lab> {
    let lab = Lab::up(Options {
        fast_path: fast_path.into(),
        agent_args: arguments.iter().map(|&it| it.to_owned()).collect(),
        ..Options::for_test(name)
    })?;
    Scene::add_third(&lab)?;
    for node in lab.nodes() {
        wait_until("the route to the third node", PATIENCE, || {
            node.overlay_routes().is_ok_and(|routes| routes == 2)
        })?;
        node.wait_ready(PATIENCE)?;
    }
    Ok(lab)
}

fn endpoint(pod: &Pod) -> Endpoint {
    Endpoint {
        name: pod.name().to_owned(),
        namespace: pod.namespace(),
        address: pod.address(),
    }
}

/// Packets that a node has refused, on both paths together.
fn refused(node: &Node) -> Result<u64> {
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    let reasons = status["refused"].as_object().context("no refusals")?;
    let paths = reasons.values().filter_map(|reason| reason.as_object());
    Ok(paths
        .flat_map(|paths| paths.values())
        .filter_map(|count| count.as_u64())
        .sum())
}

/// Sends each kind of stream while honest pods talk.
fn bear_everything(lab: &Lab) -> Result<()> {
    let scene = Scene::of(lab)?;
    let (inside, across) = (lab.pod(1, 2), lab.pod(2, 2));
    let mut failures = Vec::new();
    for kind in Kind::ALL {
        let before = refused(&lab.node(1))?;
        let listeners = lab
            .pods()
            .iter()
            .map(|pod| {
                Ok((
                    pod.name().to_owned(),
                    RawSocket::open(&pod.namespace(), "eth0")?,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        let traffic = Traffic::start(&endpoint(&inside), &endpoint(&across))?;
        let pace = Pace {
            rate: Some(RATE / slowness()),
            core: None,
        };
        let flood = Flood::start(lab, &scene, kind, pace)?;
        sleep(STREAM);
        let sent = flood.finish()?;
        let honest = traffic
            .finish()
            .with_context(|| format!("under {}", kind.name()))?;
        let refused = refused(&lab.node(1))? - before;
        println!(
            "{}: {} frames sent, {refused} refused; {honest}",
            kind.name(),
            sent.frames
        );
        for (pod, socket) in listeners {
            let arrived = socket.incoming(QUIET, is_marked)?;
            if let Some(frame) = arrived.first() {
                let (count, kind) = (arrived.len(), kind.name());
                failures.push(format!(
                    "{kind}: {count} frames arrive in {pod}: {frame:02x?}"
                ));
            }
        }
        // Not every truncated or mutated frame is still VXLAN, but each stream has some that are.
        if refused == 0 && kind != Kind::Control {
            failures.push(format!("{}: nothing is counted as refused", kind.name()));
        }
        for (loss, direction) in honest.datagrams.iter().zip(["there", "back"]) {
            let Loss { sent, lost, .. } = loss;
            if lost * MOST_LOST > *sent || *sent == 0 {
                let kind = kind.name();
                failures.push(format!(
                    "{kind}: {lost} of {sent} datagrams lost {direction}"
                ));
            }
            if loss.repeated > 0 {
                failures.push(format!("{}: datagrams arrive twice", kind.name()));
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn fast_path_bears_every_hostile_stream() -> Result<()> {
    bear_everything(&lab("hostile", "auto", &["--xdp=off"])?)
}

#[test]
fn xdp_bears_every_hostile_stream() -> Result<()> {
    let lab = lab("hostile-x", "auto", &["--xdp=on"])?;
    bear_everything(&lab)?;
    // The XDP program refused the frames.
    let metrics = lab.node(1).http_get("/metrics")?.body;
    let line = "overlay_datapath_packets_total{hook=\"net_xdp\",kind=\"refused\",\
        verdict=\"unknown_vtep\"}";
    ensure!(metrics.contains(line), "no refusals by XDP in\n{metrics}");
    Ok(())
}

#[test]
fn kernel_path_bears_every_hostile_stream() -> Result<()> {
    bear_everything(&lab("hostile-k", "off", &[])?)
}
