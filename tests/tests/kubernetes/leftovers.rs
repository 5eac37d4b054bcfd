//! Objects that pods, and the overlay itself, leave on a node: none are allowed.

use anyhow::{Context as _, Result};
use overlay_tests::kubernetes::Node;
use overlay_tests::wait_until;

use crate::PATIENCE;
use overlay_tests::pins::MAPS;

/// Everything on a node that belongs to a pod.
fn leftovers(node: &Node) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let mut add = |lines: String, keep: &dyn Fn(&str) -> bool| {
        left.extend(lines.lines().filter(|line| keep(line)).map(str::to_owned));
    };
    // The node's own end of the underlay's cable is a veth too.
    let links = node.run(["ip", "-o", "link", "show", "type", "veth"])?;
    add(links, &|line| !line.contains(": eth0@"));
    let files = node.run(["find", "/var/lib/cni", "-type", "f"])?;
    add(files, &|file| {
        !file.ends_with("/lock") && !file.contains("/last_reserved_ip.")
    });
    add(node.run(["ls", "/run/netns"])?, &|_| true);
    for map in ["ov_pods4", "ov_endpoints4"] {
        let pin = format!("{MAPS}/{map}");
        let dump = node.run(["bpftool", "--json", "map", "dump", "pinned", &pin])?;
        let entries: Vec<serde_json::Value> = serde_json::from_str(&dump).context("a dump")?;
        left.extend(entries.iter().map(|entry| format!("{map}: {entry}")));
    }
    Ok(left)
}

/// Waits until nothing on a node belongs to a pod.
pub fn wait_clean(node: &Node) -> Result<()> {
    let look = || leftovers(node);
    wait_until(&format!("{} to be clean", node.name()), PATIENCE, || {
        look().is_ok_and(|left| left.is_empty())
    })
    .with_context(|| format!("{:?}", look()))
}

/// Everything on a node that belongs to the overlay.
pub fn traces(node: &Node) -> Result<Vec<String>> {
    let look = "
        ip -o link show | grep -E ': (flannel|cni0)' || true
        ip route show proto 111 || true
        find /run/flannel /run/overlay /sys/fs/bpf/overlay /var/lib/cni/networks /etc/cni/net.d \
            /opt/cni/bin/flannel -mindepth 0 -not -path '*/net.d' -not -path /run/flannel -not \
            -path /run/overlay -not -path /var/lib/cni/networks 2>/dev/null || true
        nft list tables | grep -E 'overlay|flannel' || true
        iptables-save | grep -i -E 'flannel|overlay' || true
        iptables-legacy-save | grep -i -E 'flannel|overlay' || true";
    let found = node.run(["sh", "-c", look])?;
    Ok(found.lines().map(str::to_owned).collect())
}
