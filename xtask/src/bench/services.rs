//! The rules that kube-proxy's iptables mode writes for many Services on every node of a cluster.
//!
//! The rules follow the chains that kube-proxy documents and `iptables-save` shows on a node. Every
//! new connection passes them; the rules of measured Services are in the middle.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use overlay_tests::Node;
use serde_json::{Value, json};

use super::iptables;

/// A cluster of moderate size.
pub const MODERATE: usize = 100;
/// Number of pods behind each Service.
const ENDPOINTS: usize = 2;
/// kube-proxy's mark on packets that are to be masqueraded.
const MASQUERADE: &str = "0x4000";

/// Jumps from built-in chains: table, chain, and the rest of the rule.
const JUMPS: &[(&str, &str, &str)] = &[
    ("nat", "PREROUTING", "-j KUBE-SERVICES"),
    ("nat", "OUTPUT", "-j KUBE-SERVICES"),
    ("nat", "POSTROUTING", "-j KUBE-POSTROUTING"),
    (
        "filter",
        "INPUT",
        "-m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
    ),
    (
        "filter",
        "INPUT",
        "-m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES",
    ),
    ("filter", "INPUT", "-j KUBE-FIREWALL"),
    (
        "filter",
        "FORWARD",
        "-m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
    ),
    ("filter", "FORWARD", "-j KUBE-FORWARD"),
    (
        "filter",
        "FORWARD",
        "-m conntrack --ctstate NEW -j KUBE-SERVICES",
    ),
    (
        "filter",
        "FORWARD",
        "-m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES",
    ),
    (
        "filter",
        "OUTPUT",
        "-m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
    ),
    (
        "filter",
        "OUTPUT",
        "-m conntrack --ctstate NEW -j KUBE-SERVICES",
    ),
    ("filter", "OUTPUT", "-j KUBE-FIREWALL"),
];
const FILTER_CHAINS: &[&str] = &[
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FIREWALL",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
];
const NAT_CHAINS: &[&str] = &[
    "KUBE-MARK-MASQ",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-SERVICES",
];

/// The port of a measured Service, and the port of the pod that serves it.
pub const PORT: u16 = 80;
pub const NODE_PORT: u16 = 30080;
pub const TARGET_PORT: u16 = 8080;

/// A Service that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The Service's own address.
    pub address: Ipv4Addr,
    /// The pod that serves it.
    pub pod: Ipv4Addr,
    /// Whether the Service also has a port on every node.
    pub has_node_port: bool,
}

/// Writes the rules of `count` Services to a node, and those of `measured` among them; `pods` serve
/// the others.
pub fn install(node: &Node, count: usize, pods: &[Ipv4Addr], measured: &[Measured]) -> Result<()> {
    // kube-proxy requires this setting, because otherwise answers between pods of one node are not
    // translated back.
    node.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"])?;
    iptables::restore(node, &rules(count, pods, measured)).context("write rules as of kube-proxy")
}

/// The measured Services in the form of a store: keys below the prefix, and JSON.
pub fn objects(measured: &[Measured]) -> Vec<(String, String)> {
    let mut objects = Vec::new();
    for (i, service) in measured.iter().enumerate() {
        let Measured { address, pod, .. } = service;
        let name = format!("measured-{i}");
        let ports = |port: u16| -> Vec<Value> {
            let of = |protocol| json!({"name": protocol, "protocol": protocol, "port": port});
            ["TCP", "UDP"].map(of).into()
        };
        let mut own = ports(PORT);
        if service.has_node_port {
            own.iter_mut()
                .for_each(|port| port["nodePort"] = json!(NODE_PORT));
        }
        let kind = if service.has_node_port {
            "NodePort"
        } else {
            "ClusterIP"
        };
        let spec = json!({"type": kind, "clusterIP": address, "ports": own});
        let slice = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": ports(TARGET_PORT),
            "endpoints": [{"addresses": [pod], "conditions": {"ready": true}}],
        });
        objects.push((
            format!("services/default.{name}"),
            json!({"spec": spec}).to_string(),
        ));
        objects.push((format!("endpointslices/default.{name}"), slice.to_string()));
    }
    objects
}

/// Names of the chains of Service `i`: its own, and one for each of its pods.
fn chains(service: usize) -> (String, [String; ENDPOINTS]) {
    (
        format!("KUBE-SVC-BENCH{service:04}"),
        std::array::from_fn(|i| format!("KUBE-SEP-BENCH{service:04}N{i}")),
    )
}

fn rules(count: usize, pods: &[Ipv4Addr], measured: &[Measured]) -> String {
    let mut nat = declare("nat", NAT_CHAINS);
    let mut body = format!(
        "-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE}/{MASQUERADE} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE}\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n"
    );
    for service in 0..count {
        if service == count / 2 {
            write_measured(&mut nat, &mut body, measured);
        }
        let (chain, endpoints) = chains(service);
        let address = format!("10.96.{}.{}", service / 200, service % 200 + 1);
        let comment = format!("-m comment --comment \"bench/service-{service} cluster IP\"");
        let _ = writeln!(nat, ":{chain} - [0:0]");
        let _ = writeln!(
            body,
            "-A KUBE-SERVICES -d {address}/32 -p tcp {comment} -m tcp --dport 80 -j {chain}\n\
             -A {chain} ! -s 10.244.0.0/16 -d {address}/32 -p tcp {comment} -m tcp --dport 80 -j \
             KUBE-MARK-MASQ"
        );
        for (i, endpoint) in endpoints.iter().enumerate() {
            let pod = &pods[(service + i) % pods.len()];
            let chance = if i + 1 < ENDPOINTS {
                "-m statistic --mode random --probability 0.5 "
            } else {
                ""
            };
            let _ = writeln!(nat, ":{endpoint} - [0:0]");
            let _ = writeln!(
                body,
                "-A {chain} {comment} {chance}-j {endpoint}\n\
                 -A {endpoint} -s {pod}/32 {comment} -j KUBE-MARK-MASQ\n\
                 -A {endpoint} -p tcp {comment} -m tcp -j DNAT --to-destination {pod}:8080"
            );
        }
    }
    body.push_str("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n");
    let filter = declare("filter", FILTER_CHAINS);
    format!(
        "{nat}{body}{}COMMIT\n{filter}\
         -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate \
         RELATED,ESTABLISHED,DNAT -j DROP\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark {MASQUERADE}/{MASQUERADE} -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         {}COMMIT\n",
        jumps("nat"),
        jumps("filter"),
    )
}

/// The chains and rules of the Services that are measured, one pod behind each.
fn write_measured(chains: &mut String, rules: &mut String, measured: &[Measured]) {
    for (i, service) in measured.iter().enumerate() {
        let Measured { address, pod, .. } = service;
        let (chain, endpoint) = (
            format!("KUBE-SVC-MEASURED{i}"),
            format!("KUBE-SEP-MEASURED{i}"),
        );
        let comment = format!("-m comment --comment \"bench/measured-{i} cluster IP\"");
        let _ = writeln!(chains, ":{chain} - [0:0]\n:{endpoint} - [0:0]");
        for protocol in ["tcp", "udp"] {
            let to = format!("-p {protocol} {comment} -m {protocol}");
            let _ = writeln!(
                rules,
                "-A KUBE-SERVICES -d {address}/32 {to} --dport {PORT} -j {chain}\n\
                 -A {endpoint} {to} -j DNAT --to-destination {pod}:{TARGET_PORT}"
            );
            if service.has_node_port {
                let _ = writeln!(
                    rules,
                    "-A KUBE-NODEPORTS {to} --dport {NODE_PORT} -j KUBE-MARK-MASQ\n\
                     -A KUBE-NODEPORTS {to} --dport {NODE_PORT} -j {chain}"
                );
            }
        }
        let _ = writeln!(
            rules,
            "-A {chain} ! -s 10.244.0.0/16 -d {address}/32 {comment} -j KUBE-MARK-MASQ\n\
             -A {chain} {comment} -j {endpoint}"
        );
    }
}

fn declare(table: &str, chains: &[&str]) -> String {
    let mut text = format!("*{table}\n");
    for chain in chains {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    text
}

fn jumps(wanted: &str) -> String {
    let mut text = String::new();
    for (table, chain, rule) in JUMPS {
        if *table == wanted {
            let _ = writeln!(text, "-I {chain} {rule}");
        }
    }
    text
}
