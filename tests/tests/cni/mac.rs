//! Pods whose MAC address other programs change.

use anyhow::{Result, ensure};
use overlay_tests::status::{Counts, wait_accelerated};
use overlay_tests::wait_until;

use crate::{NOTICED, lab};
use overlay_tests::pins::MAPS;

const MAC: [u8; 6] = [0x02, 0x99, 0x88, 0x77, 0x66, 0x55];

/// The plugin `tuning` makes the same change, behind ours in the list.
#[test]
fn a_pod_whose_mac_was_changed_keeps_the_fast_path() -> Result<()> {
    let lab = lab("mac", 2, "auto")?;
    wait_accelerated(&lab)?;
    let (pod, remote, node) = (lab.pod(1, 1), lab.pod(2, 1), lab.node(1));
    let text = MAC.map(|byte| format!("{byte:02x}")).join(":");
    pod.run(["ip", "link", "set", "eth0", "address", &text])?;
    let map = format!("{MAPS}/ov_pods4");
    let bytes = MAC.map(|byte| byte.to_string()).join(",");
    wait_until("the programs to know the new MAC address", NOTICED, || {
        node.run(["bpftool", "-j", "map", "dump", "pinned", &map])
            .is_ok_and(|dump| dump.contains(&format!("[{bytes}]")))
    })?;
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
