//! The lab as shown by `lab status`. Scripts depend on the form of the JSON.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::underlay::{OUTSIDE_ADDRESS, OUTSIDE_GATEWAY, UNDERLAY_SUBNET, WIRE};
use super::{Lab, Node, Pod, StoreKind};
use crate::process::Process;

/// The whole lab.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Prefix of the name of every namespace; usually empty.
    pub prefix: String,
    /// The directory of logs and state.
    pub directory: PathBuf,
    /// Where leases are kept.
    pub store: StoreReport,
    /// The network below the overlay.
    pub underlay: UnderlayReport,
    /// Every node.
    pub nodes: Vec<NodeReport>,
    /// Every pod.
    pub pods: Vec<PodReport>,
}

/// The store.
#[derive(Clone, Debug, Serialize)]
pub struct StoreReport {
    /// `etcd` or `dir`.
    pub kind: StoreKind,
    /// URL of etcd, or the directory in the nodes' mount namespaces.
    pub endpoint: String,
    /// Namespace of etcd.
    pub namespace: Option<String>,
    /// Process id of etcd, while it runs.
    pub pid: Option<i32>,
    /// The shared directory in the machine's mount namespace.
    pub directory: Option<PathBuf>,
}

/// The underlay and the host beyond the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct UnderlayReport {
    /// Namespace of the bridge.
    pub namespace: String,
    /// Subnet in CIDR form.
    pub subnet: &'static str,
    /// MTU in bytes.
    pub mtu: u32,
    /// Namespace of the host beyond the cluster.
    pub outside_namespace: String,
    /// That host's address.
    pub outside_address: Ipv4Addr,
    /// That host's address on the underlay: the nodes' default gateway.
    pub outside_gateway: Ipv4Addr,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeReport {
    /// `n1`, `n2`, …
    pub name: String,
    /// Network namespace, for `ip netns exec`.
    pub namespace: String,
    /// File of the mount namespace, for `nsenter --mount=`.
    pub mount_namespace: Option<PathBuf>,
    /// Interface on the underlay.
    pub interface: &'static str,
    /// Address on the underlay.
    pub underlay_address: Ipv4Addr,
    /// Leased pod subnet, once the agent has one.
    pub subnet: Option<Ipv4Net>,
    /// Process id of the agent, while it runs.
    pub agent_pid: Option<i32>,
    /// Whether the agent reports that it is ready.
    pub ready: bool,
    /// The agent's log.
    pub log: PathBuf,
}

/// One pod.
#[derive(Clone, Debug, Serialize)]
pub struct PodReport {
    /// `n1p1`, …
    pub name: String,
    /// The pod's node.
    pub node: String,
    /// Network namespace, for `ip netns exec`.
    pub namespace: String,
    /// Address on the overlay.
    pub address: Ipv4Addr,
    /// Container id that the CNI plugin was given.
    pub container: String,
}

pub(super) fn report(lab: &Lab) -> Report {
    let options = lab.options();
    let prefix = &options.prefix;
    let etcd = options.store == StoreKind::Etcd;
    Report {
        directory: lab.directory().to_owned(),
        store: StoreReport {
            kind: options.store,
            endpoint: lab.store_endpoint(),
            namespace: etcd.then(|| format!("{prefix}store")),
            pid: lab
                .store_process()
                .filter(Process::is_alive)
                .map(|process| process.pid),
            directory: (!etcd).then(|| super::store::directory(&lab.shared)),
        },
        underlay: UnderlayReport {
            namespace: format!("{prefix}{WIRE}"),
            subnet: UNDERLAY_SUBNET,
            mtu: options.underlay_mtu,
            outside_namespace: format!("{prefix}outside"),
            outside_address: OUTSIDE_ADDRESS,
            outside_gateway: OUTSIDE_GATEWAY,
        },
        nodes: lab.nodes().iter().map(node).collect(),
        pods: lab.pods().iter().map(pod).collect(),
        prefix: options.prefix,
    }
}

fn node(node: &Node) -> NodeReport {
    let namespace = node.namespace();
    NodeReport {
        name: node.name(),
        namespace: namespace.name().to_owned(),
        mount_namespace: namespace.mount_path().map(Into::into),
        interface: "eth0",
        underlay_address: node.underlay_address(),
        subnet: node.subnet().ok(),
        agent_pid: node
            .agent()
            .filter(Process::is_alive)
            .map(|process| process.pid),
        ready: node
            .http_get("/readyz")
            .is_ok_and(|answer| answer.status == 200),
        log: node.agent_log(),
    }
}

fn pod(pod: &Pod) -> PodReport {
    PodReport {
        name: pod.name().to_owned(),
        node: pod.node().name(),
        namespace: pod.namespace().name().to_owned(),
        address: pod.address(),
        container: pod.container().to_owned(),
    }
}
