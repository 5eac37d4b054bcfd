//! The rules that flannel's own end-to-end tests expect of a node whose packet filter is iptables,
//! as `iptables -S` shows them (flannel's `e2e/`).

use anyhow::{Context as _, Result, ensure};
use overlay_tests::kubernetes::{Cluster, Node, POD_NETWORK};

/// Compares every node's rules with flannel's.
pub fn compare(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let object = cluster.json(["get", "node", &node.name()])?;
        let range = object["spec"]["podCIDR"].as_str().context("no podCIDR")?;
        let masq = "-m comment --comment \"flanneld masq\"";
        let forward = "-m comment --comment \"flanneld forward\"";
        same(
            &flannels(&node, "nat", "POSTROUTING")?,
            &[format!("-A POSTROUTING {masq} -j FLANNEL-POSTRTG")],
        )?;
        same(
            &rules(&node, "nat", "FLANNEL-POSTRTG")?,
            &[
                "-N FLANNEL-POSTRTG".to_owned(),
                format!("-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN"),
                format!("-A FLANNEL-POSTRTG -s {range} -d {POD_NETWORK} {masq} -j RETURN"),
                format!("-A FLANNEL-POSTRTG -s {POD_NETWORK} -d {range} {masq} -j RETURN"),
                format!("-A FLANNEL-POSTRTG ! -s {POD_NETWORK} -d {range} {masq} -j RETURN"),
                format!(
                    "-A FLANNEL-POSTRTG -s {POD_NETWORK} ! -d 224.0.0.0/4 {masq} -j MASQUERADE \
                    --random-fully"
                ),
                format!(
                    "-A FLANNEL-POSTRTG ! -s {POD_NETWORK} -d {POD_NETWORK} {masq} -j MASQUERADE \
                    --random-fully"
                ),
            ],
        )?;
        // kube-proxy's rules come first, so that they apply before the rule that accepts all pods.
        let all = rules(&node, "filter", "FORWARD")?;
        let wanted = format!("-A FORWARD {forward} -j FLANNEL-FWD");
        ensure!(all.last() == Some(&wanted), "{all:?}");
        ensure!(
            all.iter().any(|rule| rule.ends_with("-j KUBE-FORWARD")),
            "{all:?}"
        );
        same(
            &rules(&node, "filter", "FLANNEL-FWD")?,
            &[
                "-N FLANNEL-FWD".to_owned(),
                format!("-A FLANNEL-FWD -s {POD_NETWORK} {forward} -j ACCEPT"),
                format!("-A FLANNEL-FWD -d {POD_NETWORK} {forward} -j ACCEPT"),
            ],
        )?;
    }
    Ok(())
}

fn rules(node: &Node, table: &str, chain: &str) -> Result<Vec<String>> {
    let shown = node.run(["iptables", "-w", "-t", table, "-S", chain])?;
    Ok(shown.lines().map(str::to_owned).collect())
}

/// flannel's rules in a chain that others use, too.
fn flannels(node: &Node, table: &str, chain: &str) -> Result<Vec<String>> {
    let mut rules = rules(node, table, chain)?;
    rules.retain(|rule| rule.contains("FLANNEL"));
    Ok(rules)
}

fn same(found: &[String], wanted: &[String]) -> Result<()> {
    ensure!(found == wanted, "{found:#?}\ninstead of\n{wanted:#?}");
    Ok(())
}
