//! A real kube-proxy, and the outcomes of its rules.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::kubernetes::bin_dir;
use overlay_tests::{Lab, wait_until};
use serde_json::json;

use super::super::server::Server;
use super::{Outcome, Outcomes, PATIENCE, name};

/// A kube-proxy in the node's network namespace.
pub struct KubeProxy(Child);

impl KubeProxy {
    pub fn start(lab: &Lab, server: &Server) -> Result<Self> {
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": server.kubeconfig("admin")},
            "mode": "iptables",
            "clusterCIDR": "10.244.0.0/16",
            "hostnameOverride": "n1",
            "oomScoreAdj": 0,
            // These are settings of the whole machine.
            "conntrack": {
                "maxPerCore": 0, "min": 0,
                "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s",
            },
        });
        let file = server.directory.path().join("proxy.json");
        fs::write(&file, config.to_string()).context("write kube-proxy's configuration")?;
        let log = fs::File::create(server.directory.path().join("proxy.log"))?;
        let namespace = lab.node(1).namespace();
        let mut command: Command = namespace.command(bin_dir().join("kube-proxy"));
        command
            .arg(format!("--config={}", file.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let proxy = Self(namespace.start(&mut command)?);
        wait_until("kube-proxy's rules", PATIENCE, || {
            let rules = namespace.run(["iptables-save", "-t", "nat"]);
            rules.is_ok_and(|rules| rules.contains("KUBE-NODEPORTS"))
        })
        .with_context(|| {
            let log = fs::read_to_string(server.directory.path().join("proxy.log"));
            log.unwrap_or_default()
        })?;
        Ok(proxy)
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A rule of `iptables-save`: its chain, and words.
struct Rule<'a> {
    chain: &'a str,
    words: Vec<&'a str>,
}

impl<'a> Rule<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let rest = line.strip_prefix("-A ")?;
        // A comment is quoted, and has no effect.
        let mut parts = rest.split('"');
        let mut words = Vec::new();
        while let Some(part) = parts.next() {
            words.extend(part.split_whitespace());
            parts.next();
        }
        Some(Self {
            chain: words[0],
            words,
        })
    }

    /// The word after a flag.
    fn after(&self, flag: &str) -> Option<&'a str> {
        let place = self.words.iter().position(|word| *word == flag)?;
        self.words.get(place + 1).copied()
    }
}

/// The outcomes of kube-proxy's rules.
pub fn rules(lab: &Lab, own: IpAddr) -> Result<Outcomes> {
    let node = lab.node(1);
    let text = node.run(["iptables-save"])?;
    let rules: Vec<_> = text.lines().filter_map(Rule::parse).collect();
    // The servers of a chain, including those of all chains that it jumps to.
    let follow = |chain: &str| -> Outcome {
        let mut outcome = Outcome::default();
        let mut chains = vec![chain.to_owned()];
        while let Some(chain) = chains.pop() {
            for rule in rules.iter().filter(|rule| rule.chain == chain) {
                let Some(target) = rule.after("-j") else {
                    continue;
                };
                if let Some(server) = rule.after("--to-destination") {
                    outcome.servers.insert(server.to_owned());
                }
                if rule.words.contains(&"--rcheck") {
                    let seconds = rule.after("--seconds").and_then(|it| it.parse().ok());
                    outcome.affinity = seconds;
                }
                let is_service = ["KUBE-SVC-", "KUBE-XLB-", "KUBE-FW-"];
                let is_server = target.starts_with("KUBE-SEP-") && !chain.starts_with("KUBE-XLB-");
                if is_server || is_service.iter().any(|it| target.starts_with(it)) {
                    chains.push(target.to_owned());
                }
            }
        }
        outcome
    };
    let mut outcomes = Outcomes::new();
    let frontends = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES"];
    for rule in rules.iter().filter(|rule| frontends.contains(&rule.chain)) {
        let Some(port) = rule.after("--dport").and_then(|port| port.parse().ok()) else {
            continue;
        };
        let Some(transport) = rule.after("-p").filter(|it| ["tcp", "udp"].contains(it)) else {
            continue;
        };
        let address = match rule.after("-d") {
            Some(address) => address.trim_end_matches("/32").parse::<Ipv4Addr>()?.into(),
            None => own,
        };
        let outcome = match rule.after("-j") {
            Some("REJECT") => Outcome::default(),
            Some(target) if !target.starts_with("KUBE-MARK-") => follow(target),
            _ => continue,
        };
        let known = outcomes.insert(name(address, port, transport), outcome.clone());
        ensure!(
            known.is_none_or(|it| it == outcome),
            "two ways: {address}:{port}"
        );
    }
    Ok(outcomes)
}
