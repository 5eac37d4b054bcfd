//! Packet-filter rules like those of kube-proxy (iptables mode) and of the portmap plugin.
//!
//! Chains, marks and their order are the same as theirs, because the overlay has to work with
//! those; names of services are shorter than hashes.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;

use crate::conversation::Transport;
use crate::{Node, command};

/// A Service: an address of no host, which leads to pods.
#[derive(Clone, Debug)]
pub struct Service {
    /// Part of the names of chains; capital letters.
    pub name: &'static str,
    /// The Service's address in the cluster.
    pub address: SocketAddrV4,
    /// The pods behind it.
    pub backends: Vec<SocketAddrV4>,
    /// The port of every node that leads to the Service.
    pub node_port: Option<u16>,
    /// `externalTrafficPolicy: Local`: from outside only pods of the node are reached, and they see
    /// the client's address.
    pub local_only: bool,
    /// Whether every client is masqueraded (kube-proxy's `--masquerade-all`), not only those from
    /// outside.
    pub masquerade_all: bool,
}

/// A port of a node that leads to one of the node's pods.
#[derive(Clone, Copy, Debug)]
pub struct HostPort {
    /// The node's port.
    pub port: u16,
    /// The pod.
    pub pod: SocketAddrV4,
    /// The node's pod subnet, from which clients are masqueraded.
    pub subnet: Ipv4Net,
}

/// Writes the rules of kube-proxy to a node, in one batch.
///
/// # Errors
/// When `iptables-restore` refuses.
pub fn serve(node: &Node, network: Ipv4Net, services: &[Service]) -> Result<()> {
    let mut chains = String::new();
    let mut rules = String::new();
    for (service, transport) in services
        .iter()
        .flat_map(|service| Transport::ALL.map(|transport| (service, transport)))
    {
        let own_subnet = node.subnet()?;
        service_rules(
            &mut chains,
            &mut rules,
            network,
            own_subnet,
            service,
            transport,
        );
    }
    let text = format!(
        "*nat\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n{chains}\
         -I PREROUTING -j KUBE-SERVICES\n\
         -I OUTPUT -j KUBE-SERVICES\n\
         -I POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {rules}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         COMMIT\n\
         *filter\n\
         :KUBE-FORWARD - [0:0]\n\
         -I FORWARD -j KUBE-FORWARD\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n"
    );
    restore(node, &text)
}

fn service_rules(
    chains: &mut String,
    rules: &mut String,
    network: Ipv4Net,
    own_subnet: Ipv4Net,
    service: &Service,
    transport: Transport,
) {
    let Service {
        name,
        address,
        backends,
        node_port,
        local_only,
        masquerade_all,
    } = service;
    let protocol = transport.name();
    let tag = format!("{name}-{}", protocol.to_uppercase());
    let (ip, port) = (address.ip(), address.port());
    let to_service = format!("-d {ip}/32 -p {protocol} --dport {port}");
    // Writing to a String cannot fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(rules, "{text}");
    };
    let _ = writeln!(chains, ":KUBE-SVC-{tag} - [0:0]");
    line(format_args!(
        "-A KUBE-SERVICES {to_service} -j KUBE-SVC-{tag}"
    ));
    let clients = if *masquerade_all {
        String::new()
    } else {
        format!("! -s {network} ")
    };
    line(format_args!(
        "-A KUBE-SVC-{tag} {clients}{to_service} -j KUBE-MARK-MASQ"
    ));
    endpoints(&mut line, &format!("KUBE-SVC-{tag}"), &tag, backends);
    for (i, backend) in backends.iter().enumerate() {
        let ip = backend.ip();
        // A pod that reaches itself must not see its own address as the client's.
        line(format_args!(
            "-A KUBE-SEP-{tag}-{i} -s {ip}/32 -j KUBE-MARK-MASQ"
        ));
        line(format_args!(
            "-A KUBE-SEP-{tag}-{i} -p {protocol} -j DNAT --to-destination {backend}"
        ));
        let _ = writeln!(chains, ":KUBE-SEP-{tag}-{i} - [0:0]");
    }
    let Some(node_port) = node_port else { return };
    let _ = writeln!(chains, ":KUBE-EXT-{tag} - [0:0]");
    line(format_args!(
        "-A KUBE-NODEPORTS -p {protocol} --dport {node_port} -j KUBE-EXT-{tag}"
    ));
    if !local_only {
        line(format_args!("-A KUBE-EXT-{tag} -j KUBE-MARK-MASQ"));
        line(format_args!("-A KUBE-EXT-{tag} -j KUBE-SVC-{tag}"));
        return;
    }
    // Packets from within the cluster may go to all endpoints.
    line(format_args!(
        "-A KUBE-EXT-{tag} -s {network} -j KUBE-SVC-{tag}"
    ));
    line(format_args!(
        "-A KUBE-EXT-{tag} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"
    ));
    line(format_args!(
        "-A KUBE-EXT-{tag} -m addrtype --src-type LOCAL -j KUBE-SVC-{tag}"
    ));
    for (i, _) in backends
        .iter()
        .enumerate()
        .filter(|(_, backend)| own_subnet.contains(backend.ip()))
    {
        line(format_args!("-A KUBE-EXT-{tag} -j KUBE-SEP-{tag}-{i}"));
    }
}

/// Rules that choose among endpoints with equal probabilities.
fn endpoints(
    line: &mut impl FnMut(std::fmt::Arguments<'_>),
    chain: &str,
    tag: &str,
    backends: &[SocketAddrV4],
) {
    for i in 0..backends.len() {
        let left = backends.len() - i;
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let chance = 1.0 / left as f64;
        let choice = if left > 1 {
            format!("-m statistic --mode random --probability {chance:.5} ")
        } else {
            String::new()
        };
        line(format_args!("-A {chain} {choice}-j KUBE-SEP-{tag}-{i}"));
    }
}

/// Writes the rules of the portmap plugin to a node.
///
/// # Errors
/// When `iptables-restore` refuses.
pub fn map_ports(node: &Node, ports: &[HostPort]) -> Result<()> {
    let mut rules = String::new();
    for HostPort { port, pod, subnet } in ports {
        for protocol in Transport::ALL.map(Transport::name) {
            let to_port = format!("-p {protocol} --dport {port}");
            for client in [subnet.to_string(), Ipv4Addr::LOCALHOST.to_string()] {
                let _ = writeln!(
                    rules,
                    "-A CNI-HOSTPORT-DNAT -s {client} {to_port} -j CNI-HOSTPORT-SETMARK"
                );
            }
            let _ = writeln!(
                rules,
                "-A CNI-HOSTPORT-DNAT {to_port} -j DNAT --to-destination {pod}"
            );
        }
    }
    let text = format!(
        "*nat\n\
         :CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-SETMARK - [0:0]\n:CNI-HOSTPORT-MASQ - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A POSTROUTING -j CNI-HOSTPORT-MASQ\n\
         -A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000\n\
         -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n\
         {rules}\
         COMMIT\n"
    );
    restore(node, &text)
}

fn restore(node: &Node, text: &str) -> Result<()> {
    let namespace = node.namespace();
    let mut restore = namespace.command("iptables-restore");
    restore
        .args(["--noflush", "--wait"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = namespace.start(&mut restore)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(text.as_bytes())
            .context("write to iptables-restore")?;
    }
    let output = child
        .wait_with_output()
        .context("wait for iptables-restore")?;
    command::require_success(&format!("iptables-restore:\n{text}"), output)?;
    Ok(())
}
