//! Everybody reaches everybody, the receiver sees the sender's own address, and plain pod traffic
//! takes the fast path.

use anyhow::{Result, ensure};
use overlay_tests::fast_path::left_by_request;
use overlay_tests::reach;
use overlay_tests::status::{Counts, status, wait_accelerated};
use overlay_tests::{Lab, Options, StoreKind};

/// Slow causes that the matrix provokes: it sends datagrams of up to 60 kB.
const PROVOKED: &[&str] = &["fragment"];
/// What may happen besides: packets of the time before the fast path knew the pod.
const TOLERATED: &[&str] = &["inactive", "pod_kernel_path", "unknown_endpoint"];

fn lab(name: &str, store: StoreKind, fast_path: &str) -> Result<Lab> {
    Lab::up(Options {
        store,
        fast_path: fast_path.to_owned(),
        ..Options::for_test(name)
    })
}

/// Checks that plain traffic took the fast path on every node, and that whatever did not is
/// explained.
fn plain_traffic_took_the_fast_path(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let counts = Counts::of(&node)?;
        let name = node.name();
        ensure!(
            counts.redirected > 0,
            "{name} redirected nothing: {counts:?}"
        );
        ensure!(
            counts.encapsulated > 0,
            "{name} encapsulated nothing: {counts:?}"
        );
        ensure!(
            counts.decapsulated > 0,
            "{name} decapsulated nothing: {counts:?}"
        );
        let ratio = counts.hit_ratio_without(&[PROVOKED, left_by_request()].concat());
        ensure!(ratio >= 0.9, "{name}: hit ratio {ratio:.3}: {counts:?}");
        for cause in counts.slow.keys() {
            let explained = [PROVOKED, TOLERATED, left_by_request()]
                .concat()
                .contains(&cause.as_str());
            ensure!(
                explained,
                "{name}: unexplained slow cause {cause}: {counts:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn reachability_with_etcd_and_the_fast_path() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 3,
        ..Options::for_test("reach-etcd")
    })?;
    wait_accelerated(&lab)?;
    reach::require_all(&lab)?;
    plain_traffic_took_the_fast_path(&lab)
}

#[test]
fn reachability_with_a_directory_and_the_fast_path() -> Result<()> {
    let lab = lab("reach-dir", StoreKind::Dir, "auto")?;
    wait_accelerated(&lab)?;
    reach::require_all(&lab)?;
    plain_traffic_took_the_fast_path(&lab)
}

#[test]
fn reachability_with_etcd_and_the_kernel_path() -> Result<()> {
    let lab = Lab::up(Options {
        fast_path: "off".to_owned(),
        agent_args: vec!["--guard=nftables".to_owned()],
        ..Options::for_test("reach-etcd-off")
    })?;
    reach::require_all(&lab)?;
    nothing_is_loaded(&lab)
}

#[test]
fn reachability_with_a_directory_and_the_kernel_path() -> Result<()> {
    let lab = lab("reach-dir-off", StoreKind::Dir, "off")?;
    reach::require_all(&lab)?;
    programs_only_check(&lab)
}

/// Without a fast path, programs judge what pods send, and carry nothing.
fn programs_only_check(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let status = status(&node)?;
        let attachments = status["attachments"].as_array();
        let of_pods = |it: &serde_json::Value| it["hook"] == "pod_in";
        ensure!(
            attachments.is_some_and(|all| !all.is_empty() && all.iter().all(of_pods)),
            "{status}"
        );
        let counts = Counts::of(&node)?;
        ensure!(
            counts.redirected + counts.encapsulated + counts.decapsulated == 0,
            "{counts:?}"
        );
    }
    Ok(())
}

fn nothing_is_loaded(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let status = status(&node)?;
        ensure!(status["fast_path"]["state"] == "absent", "{status}");
        ensure!(
            status["attachments"].as_array().is_some_and(Vec::is_empty),
            "{status}"
        );
    }
    Ok(())
}
