//! Pods whose MAC address others change.

use anyhow::{Context as _, Result, ensure};
use overlay_tests::status::{Counts, status, wait_accelerated};
use overlay_tests::wait_until;

use crate::{NOTICED, lab};

const MAC: &str = "02:99:88:77:66:55";

/// As the plugin `tuning` does it, behind ours in the list.
#[test]
fn a_pod_whose_mac_was_changed_keeps_the_fast_path() -> Result<()> {
    let lab = lab("mac", 2, "auto")?;
    wait_accelerated(&lab)?;
    let (pod, remote, node) = (lab.pod(1, 1), lab.pod(2, 1), lab.node(1));
    pod.run(["ip", "link", "set", "eth0", "address", MAC])?;
    let knows = || -> Result<bool> {
        let status = status(&node)?;
        let pods = status["pods"].as_array().context("no pods")?;
        Ok(pods.iter().any(|it| {
            it["address"] == pod.address().to_string() && it["mac"] == MAC && it["path"] == "fast"
        }))
    };
    wait_until("the agent to know the new MAC address", NOTICED, || {
        knows().is_ok_and(|knows| knows)
    })
    .with_context(|| format!("{:?}", status(&node).map(|status| status["pods"].clone())))?;
    let before = Counts::of(&node)?;
    for (from, to) in [(&pod, &remote), (&remote, &pod)] {
        from.run(["ping", "-c3", "-i0.2", "-W1", &to.address().to_string()])?;
    }
    lab.pod(1, 2)
        .run(["ping", "-c3", "-i0.2", "-W1", &pod.address().to_string()])?;
    let counts = &Counts::of(&node)? - &before;
    ensure!(
        counts.encapsulated >= 6 && counts.decapsulated >= 6 && counts.redirected >= 6,
        "{counts:?}"
    );
    lab.down()
}
