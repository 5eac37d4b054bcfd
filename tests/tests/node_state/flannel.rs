//! The kernel's state on a node, against that of a node of flannel's (`pkg/backend/vxlan` and
//! `pkg/trafficmngr/iptables` of flannel, and the golden texts of its `e2e/rules.go`), as the tools
//! show it.

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{Lab, Node, Options};

use crate::shell;

/// A command, and below it every line of flannel's that must be in the command's output.
const GOLDEN: &str = include_str!("flannel.txt");
/// Text that only our lines have: the routes' own protocol, and lifetimes.
const OURS: [&str; 2] = [" proto 111", " valid_lft forever preferred_lft forever"];

/// The lines of flannel's in a command's output.
fn shown(node: &Node, command: &str) -> Result<Vec<String>> {
    let text = shell(node, command)?;
    let lines = text.lines().map(|line| {
        let line = OURS
            .iter()
            .fold(line.to_owned(), |line, ours| line.replace(ours, ""));
        line.replace('\\', " ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    });
    Ok(lines.filter(|line| is_flannels(command, line)).collect())
}

/// Leaves out lines that have nothing to do with flannel.
fn is_flannels(command: &str, line: &str) -> bool {
    match command.split(' ').next() {
        Some("iptables-save") => line.contains("FLANNEL-") && line.starts_with("-A"),
        // Multicast groups that the kernel joins.
        Some("bridge") => line.contains(" dst "),
        _ => true,
    }
}

#[test]
fn a_node_looks_as_flannel_makes_it() -> Result<()> {
    let lab = Lab::up(Options {
        pods: 1,
        ..Options::for_test("golden")
    })?;
    let (node, peer) = (lab.node(1), lab.node(2));
    let (subnet, peers) = (node.subnet()?, peer.subnet()?);
    let mac = peer.read_file("/sys/class/net/flannel.1/address")?;
    // Where one name begins with another, the longer one comes first.
    let words = [
        ("PEERSUBNET", peers.to_string()),
        ("PEERVTEP", peers.network().to_string()),
        ("PEERMAC", mac.trim().to_owned()),
        ("PEER", peer.underlay_address().to_string()),
        ("NETWORK", "10.244.0.0/16".to_owned()),
        ("SUBNET", subnet.to_string()),
        ("VTEP", subnet.network().to_string()),
        ("NODE", node.underlay_address().to_string()),
    ];
    let golden = words.iter().fold(GOLDEN.to_owned(), |text, (word, value)| {
        text.replace(word, value)
    });
    for part in golden.split("# ").skip(1) {
        let (command, lines) = part.split_once('\n').context("a command without lines")?;
        let wanted: Vec<&str> = lines.lines().collect();
        let shown = shown(&node, command)?;
        // Tools may show more of an object in the same line or beside it; of rules and entries
        // there must be no others.
        let has = |wanted: &&str| shown.iter().any(|line| line.contains(*wanted));
        let missing: Vec<_> = wanted.iter().filter(|line| !has(line)).collect();
        let is_list = !command.starts_with("ip -d");
        ensure!(
            missing.is_empty() && (!is_list || shown.len() == wanted.len()),
            "`{command}` shows\n{}\nand flannel's are\n{}",
            shown.join("\n"),
            wanted.join("\n")
        );
        if command.starts_with("iptables") {
            ensure!(shown == wanted, "another order: {shown:#?}");
        }
    }
    lab.down()
}
