//! A few of Kubernetes' own conformance tests; `cargo xtask conformance` runs all of them.

use anyhow::{Result, ensure};
use overlay_tests::kubernetes::Outcome;

use crate::cluster;

/// Five cases of the network: pods by TCP and UDP, several ports of a Service, session affinity,
/// names.
const FOCUS: &str = concat!(
    r"\[sig-network\].*(intra-pod communication: (http|udp)|multiport endpoints|",
    r"affinity work for service with type clusterIP|DNS for the cluster ).*\[Conformance\]",
);
const CASES: usize = 5;

#[test]
fn kubernetes_own_tests_pass() -> Result<()> {
    let cluster = cluster("k8s-upstream")?;
    cluster.prepare_upstream()?;
    let cases = cluster.try_upstream(FOCUS, |_| {})?;
    let passed = cases
        .iter()
        .filter(|case| case.outcome == Outcome::Passed)
        .count();
    ensure!(passed == CASES && cases.len() == CASES, "{cases:#?}");
    cluster.down()
}
