//! The reachability matrix: the pairs that must reach each other, and the source address that the
//! receiver must see.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::lab::OUTSIDE_ADDRESS;
use crate::traffic::{self, Answers, Endpoint};
use crate::{Lab, Node, Pod, interrupt};

/// Sizes of datagrams, in bytes: from one byte, through the limits of one packet, to many
/// fragments.
const DATAGRAMS: &[usize] = &[1, 512, 1400, 1422, 1423, 9000, 60_000];
/// IPv4 and UDP headers, in bytes.
const HEADERS: usize = 28;
/// Sizes of the payload of echoes, in bytes.
const ECHOES: &[usize] = &[8, 1400, 20_000];
/// Number of bytes over a TCP connection: more than one window.
const STREAM: usize = 200_000;

/// The two ends of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// Two pods of one node.
    PodToPodSameNode,
    /// Two pods of two nodes.
    PodToPodAcrossNodes,
    /// A process of the node to a pod on it.
    NodeToOwnPod,
    /// A process of a node to a pod on another.
    NodeToRemotePod,
    /// A pod to the node that it runs on.
    PodToOwnNode,
    /// A pod to another node.
    PodToRemoteNode,
    /// A pod to a host beyond the cluster.
    PodToOutside,
    /// Two processes of one pod.
    Localhost,
}

impl Relation {
    /// A node's and the outside's path back to a pod has a smaller MTU than the underlay on which
    /// the path begins. Therefore an endpoint that answers with more than one packet of the pods'
    /// network has to learn the path's MTU.
    /// that.
    fn answers(self, length: usize, mtu: usize) -> Answers {
        match self {
            Self::PodToOwnNode | Self::PodToRemoteNode | Self::PodToOutside
                if length + HEADERS > mtu =>
            {
                Answers::Twice
            }
            _ => Answers::Once,
        }
    }

    /// Whether a node has to learn the MTU of its path to a remote pod, because no tunnel limits
    /// the MTU at the begin of the path: then the first long datagram is lost.
    fn learns(self, length: usize, mtu: usize, in_tunnel: bool) -> bool {
        self == Self::NodeToRemotePod && !in_tunnel && length + HEADERS > mtu
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PodToPodSameNode => "pod to pod, same node",
            Self::PodToPodAcrossNodes => "pod to pod, across nodes",
            Self::NodeToOwnPod => "node to own pod",
            Self::NodeToRemotePod => "node to remote pod",
            Self::PodToOwnNode => "pod to own node",
            Self::PodToRemoteNode => "pod to remote node",
            Self::PodToOutside => "pod to outside, masqueraded",
            Self::Localhost => "localhost of a pod",
        })
    }
}

/// The protocols of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A connection, both ways.
    Tcp,
    /// A datagram there and one back.
    Udp,
    /// An echo.
    Icmp,
}

/// A pair that must be able to talk.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The relation of the two ends.
    pub relation: Relation,
    /// The end that begins.
    pub from: Endpoint,
    /// The end that answers.
    pub to: Endpoint,
    /// The source address that the receiver must see.
    pub source: Ipv4Addr,
    /// Longest packet of the pods' network, in bytes; without limit where it is as long as on the
    /// underlay.
    pub mtu: usize,
    /// Whether nodes reach each other's pods through a tunnel.
    pub in_tunnel: bool,
}

/// The result of one conversation.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The relation of the two ends.
    pub relation: Relation,
    /// The end that began.
    pub from: String,
    /// The end that answered.
    pub to: String,
    /// The protocol of the conversation.
    pub protocol: Protocol,
    /// The number of bytes that were sent.
    pub bytes: usize,
    /// The cause of a failure.
    pub failure: Option<String>,
}

impl Check {
    /// Whether the conversation succeeded.
    pub fn passed(&self) -> bool {
        self.failure.is_none()
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            relation,
            from,
            to,
            protocol,
            bytes,
            failure,
        } = self;
        let failure = failure.as_deref().unwrap_or("ok");
        write!(
            f,
            "{relation}: {from} to {to}, {protocol:?}, {bytes} bytes: {failure}"
        )
    }
}

/// Every pair of the lab that must be able to talk.
///
/// # Errors
/// When a node has no lease, or no file for the plugin.
pub fn pairs(lab: &Lab) -> Result<Vec<Pair>> {
    let pods = lab.pods();
    let nodes = lab.nodes();
    let mut pairs = Vec::new();
    for pod in &pods {
        pairs.extend(
            pods.iter()
                .filter(|other| other.name() != pod.name())
                .map(|other| {
                    let same = pod.node().name() == other.node().name();
                    let relation = if same {
                        Relation::PodToPodSameNode
                    } else {
                        Relation::PodToPodAcrossNodes
                    };
                    pair(relation, of_pod(pod), of_pod(other), pod.address())
                }),
        );
        for node in &nodes {
            let own = node.name() == pod.node().name();
            let subnet = node.subnet()?;
            // A node talks to its pods from the bridge's address, and to other nodes' pods from the
            // address of the device that leads there.
            let gateway = subnet.hosts().next().context("a subnet without hosts")?;
            let (to_pod, source, from_pod, seen) = if own {
                (
                    Relation::NodeToOwnPod,
                    gateway,
                    Relation::PodToOwnNode,
                    pod.address(),
                )
            } else {
                let masqueraded = pod.node().underlay_address();
                let outlet = match lab.options().has_tunnels() {
                    true => subnet.network(),
                    false => node.underlay_address(),
                };
                (
                    Relation::NodeToRemotePod,
                    outlet,
                    Relation::PodToRemoteNode,
                    masqueraded,
                )
            };
            pairs.push(pair(to_pod, of_node(node), of_pod(pod), source));
            pairs.push(pair(from_pod, of_pod(pod), of_node(node), seen));
        }
        let outside = Endpoint {
            name: "outside".to_owned(),
            namespace: lab.namespace("outside")?,
            address: OUTSIDE_ADDRESS,
        };
        let masqueraded = pod.node().underlay_address();
        pairs.push(pair(
            Relation::PodToOutside,
            of_pod(pod),
            outside,
            masqueraded,
        ));
        let localhost = Endpoint {
            address: Ipv4Addr::LOCALHOST,
            ..of_pod(pod)
        };
        pairs.push(pair(
            Relation::Localhost,
            of_pod(pod),
            localhost,
            Ipv4Addr::LOCALHOST,
        ));
    }
    let mtu = match mtu(lab)? {
        mtu if mtu < lab.options().underlay_mtu as usize => mtu,
        _ => usize::MAX,
    };
    let in_tunnel = lab.options().has_tunnels();
    for pair in &mut pairs {
        (pair.mtu, pair.in_tunnel) = (mtu, in_tunnel);
    }
    pairs.sort_by_key(|pair| pair.relation);
    Ok(pairs)
}

/// The MTU that the plugin gives the pods' interfaces, which is smaller where the underlay is a
/// tunnel.
fn mtu(lab: &Lab) -> Result<usize> {
    let text = lab.node(1).read_file("/run/flannel/subnet.env")?;
    let mtu = text
        .lines()
        .find_map(|line| line.strip_prefix("FLANNEL_MTU="));
    mtu.and_then(|mtu| mtu.parse().ok())
        .with_context(|| format!("no FLANNEL_MTU in {text}"))
}

/// Failures of a pair after which no further checks are made, because each costs seconds, and the
/// rest gives no new information.
const ENOUGH_FAILURES: usize = 3;

/// Checks one pair with every protocol and size.
pub fn check(pair: &Pair) -> Vec<Check> {
    let tcp = [(Protocol::Tcp, STREAM)];
    let udp = DATAGRAMS.iter().map(|size| (Protocol::Udp, *size));
    let icmp = ECHOES.iter().map(|size| (Protocol::Icmp, *size));
    let mut checks: Vec<Check> = Vec::new();
    for (protocol, bytes) in tcp.into_iter().chain(udp).chain(icmp) {
        if checks.iter().filter(|check| !check.passed()).count() == ENOUGH_FAILURES {
            break;
        }
        checks.push(converse(pair, protocol, bytes));
    }
    checks
}

/// Checks that all pairs reach each other, by TCP, UDP and ICMP, with small and with large packets.
///
/// # Errors
/// As for [`check_all`], and with a line for each check that failed.
pub fn require_all(lab: &Lab) -> Result<()> {
    let checks = check_all(lab, |_, _| ())?;
    let failures: Vec<String> = checks
        .iter()
        .filter(|check| !check.passed())
        .map(Check::to_string)
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Checks every pair of the lab; `tell` is called after each pair.
///
/// # Errors
/// When the pairs cannot be determined, or on an interrupt. Failed checks are in the result.
pub fn check_all(lab: &Lab, mut tell: impl FnMut(&Pair, &[Check])) -> Result<Vec<Check>> {
    let mut all = Vec::new();
    for pair in pairs(lab)? {
        interrupt::check()?;
        let checks = check(&pair);
        tell(&pair, &checks);
        all.extend(checks);
    }
    Ok(all)
}

fn converse(pair: &Pair, protocol: Protocol, bytes: usize) -> Check {
    let Pair {
        relation,
        from,
        to,
        source,
        mtu,
        in_tunnel,
    } = pair;
    let seen = match protocol {
        Protocol::Tcp => traffic::tcp(from, to, bytes),
        Protocol::Udp => {
            let talk = || traffic::udp(from, to, bytes, relation.answers(bytes, *mtu));
            let learns = relation.learns(bytes, *mtu, *in_tunnel);
            talk().or_else(|error| if learns { talk() } else { Err(error) })
        }
        Protocol::Icmp => traffic::icmp(from, to, bytes),
    };
    let failure = match seen {
        Ok(seen) if seen == IpAddr::V4(*source) => None,
        Ok(seen) => Some(format!("the receiver sees {seen} and not {source}")),
        Err(error) => Some(format!("{error:#}")),
    };
    Check {
        relation: *relation,
        from: from.name.clone(),
        to: to.name.clone(),
        protocol,
        bytes,
        failure,
    }
}

fn pair(relation: Relation, from: Endpoint, to: Endpoint, source: Ipv4Addr) -> Pair {
    Pair {
        relation,
        from,
        to,
        source,
        mtu: 0,
        in_tunnel: true,
    }
}

/// A pod as one end of a conversation.
pub fn of_pod(pod: &Pod) -> Endpoint {
    Endpoint {
        name: pod.name().to_owned(),
        namespace: pod.namespace(),
        address: pod.address(),
    }
}

/// A node as one end of a conversation, by its underlay address.
pub fn of_node(node: &Node) -> Endpoint {
    Endpoint {
        name: node.name(),
        namespace: node.namespace(),
        address: node.underlay_address(),
    }
}
