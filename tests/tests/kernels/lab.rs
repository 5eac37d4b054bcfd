//! Two nodes with traffic between their pods, on the best path of the kernel.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::pace::{Outcome, Traffic};
use overlay_tests::reach;
use overlay_tests::rest::wait_at_rest;
use overlay_tests::status::{Counts, status, wait_accelerated};
use overlay_tests::traffic::Endpoint;
use overlay_tests::{Lab, Options, Pod, StoreKind};

use crate::kernel::expected_mechanism;

/// Duration of the traffic before and after an action.
const CALM: Duration = Duration::from_secs(1);

/// Two nodes with one pod each and leases in files: the smallest lab for these tests.
pub fn options(name: &str) -> Options {
    Options {
        pods: 1,
        store: StoreKind::Dir,
        ..Options::for_test(name)
    }
}

pub fn endpoint(pod: &Pod) -> Endpoint {
    Endpoint {
        name: pod.name().to_owned(),
        namespace: pod.namespace(),
        address: pod.address(),
    }
}

/// Runs traffic between the nodes while `work` is done.
pub fn under_traffic(lab: &Lab, work: impl FnOnce() -> Result<()>) -> Result<Outcome> {
    let traffic = Traffic::start(&endpoint(&lab.pod(1, 1)), &endpoint(&lab.pod(2, 1)))?;
    sleep(CALM);
    let result = work();
    sleep(CALM);
    let outcome = traffic.finish()?;
    println!("{outcome}");
    result.with_context(|| lab.node(1).agent_log_tail())?;
    Ok(outcome)
}

/// Waits until the best path of this kernel is in use, and returns whether that is the fast path.
pub fn wait_for_best_path(lab: &Lab) -> Result<bool> {
    let fast = expected_mechanism().is_some();
    if fast {
        wait_accelerated(lab)?;
    }
    Ok(fast)
}

#[test]
#[ignore = "runs in a kernel VM: cargo xtask vmtest"]
fn traffic_survives_restart_and_swap() -> Result<()> {
    let lab = Lab::up(options("kernel"))?;
    let node = lab.node(1);
    let fast = wait_for_best_path(&lab)?;

    let before = Counts::of(&node)?;
    let outcome = under_traffic(&lab, || Ok(()))?;
    ensure!(outcome.lost() == 0, "undisturbed: {outcome}");
    if fast {
        let counts = &Counts::of(&node)? - &before;
        let ratio = counts.hit_ratio_without(&[]);
        println!("hit ratio {ratio:.3}: {counts:?}");
        ensure!(
            counts.encapsulated > 0 && counts.decapsulated > 0 && ratio > 0.9,
            "hit ratio {ratio:.3}: {counts:?}"
        );
    } else {
        only_the_kernel_path_serves(&lab)?;
    }
    for (name, signal) in [("killed", Signal::SIGKILL), ("ended", Signal::SIGTERM)] {
        let outcome = under_traffic(&lab, || {
            node.stop_agent(signal)?;
            sleep(CALM);
            // A new agent loads its own programs and replaces the old ones.
            node.start_agent(&[])?;
            wait_for_best_path(&lab).map(drop)
        })
        .with_context(|| format!("agent {name} and started"))?;
        ensure!(outcome.lost() == 0, "agent {name} and started: {outcome}");
    }
    lab.down()
}

#[test]
#[ignore = "runs in a kernel VM: cargo xtask vmtest"]
fn everybody_reaches_everybody() -> Result<()> {
    // There are neighbours on a node, because the kernel's checks on that path differ between
    // releases.
    let lab = Lab::up(Options {
        pods: 2,
        ..options("matrix")
    })?;
    let fast = wait_for_best_path(&lab)?;
    reach::require_all(&lab)?;
    // An agent gets events of its own changes, and the events differ between kernels.
    wait_at_rest(&lab.node(1))?;
    if fast {
        for node in lab.nodes() {
            let counts = Counts::of(&node)?;
            ensure!(
                counts.redirected > 0 && counts.encapsulated > 0 && counts.decapsulated > 0,
                "{counts:?}"
            );
        }
    }
    lab.down()
}

/// The agent reports why there is no fast path, is ready nevertheless, and has left no partial
/// state.
fn only_the_kernel_path_serves(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let ready = node.http_get("/readyz")?;
        println!("{}", ready.body);
        let why = "fast path: down: this kernel has no encapsulation with an inner Ethernet header \
                   (Linux 5.13 has)";
        ensure!(ready.status == 200, "{}", ready.body);
        ensure!(ready.body.contains(why), "{}", ready.body);
        let log = std::fs::read_to_string(node.agent_log())?;
        ensure!(log.contains("the kernel path carries everything"), "{log}");
        let status = status(&node)?;
        ensure!(status["fast_path"]["state"] == "absent", "{status}");
        let left = node.exec(["ls", "/sys/fs/bpf/overlay"])?;
        ensure!(!left.status.success(), "pins are left");
    }
    Ok(())
}
