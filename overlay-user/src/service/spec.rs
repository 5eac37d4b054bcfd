//! The judged form of a Service and of an EndpointSlice, small because a cluster may have tens of
//! thousands of them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::ServiceTransport;
use super::api;
use super::judge::{self, Refusal, Role, tell};
use super::name::ObjectName;
use crate::per_family::PerFamily;

/// Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`, and its bounds.
const AFFINITY: u64 = 3 * 60 * 60;
const AFFINITY_BOUNDS: (u64, u64) = (1, 24 * 60 * 60);

/// The node for which a table of Services is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locality {
    /// Name of the node, as EndpointSlices call it.
    pub node: String,
    /// The node's zone.
    pub zone: Option<String>,
    /// The node's addresses at which node ports are served.
    pub addresses: Vec<IpAddr>,
    /// The pods' networks.
    pub pods: PerFamily<IpNet>,
}

/// A Service that kube-proxy would serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Time of creation: of two Services that claim one frontend by equal rights, the older has it.
    pub created: Arc<str>,
    /// Cluster IPs, not compared with nodes' addresses yet.
    pub cluster_ips: Box<[IpAddr]>,
    /// External IPs, then load balancers' addresses.
    pub external: Box<[IpAddr]>,
    /// Ports.
    pub ports: Box<[OfferedPort]>,
    /// For how long a client stays with its server.
    pub affinity: Option<Duration>,
    /// Whether the cluster IPs lead to servers of the client's node only.
    pub is_local: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedPort {
    /// The name by which EndpointSlices refer to the port.
    pub name: Box<str>,
    /// The transport.
    pub transport: ServiceTransport,
    /// The port number.
    pub port: u16,
    /// The node port, the same on every node.
    pub node_port: Option<u16>,
    /// An identifier that differs from those of all other ports of Services, and is the same after
    /// a restart of the agent.
    pub id: u64,
}

impl Spec {
    /// Reads a Service; `None` if kube-proxy would not serve the Service: headless, an external
    /// name, or labelled as left to others. Refused parts are added to `told`.
    pub fn new(here: &Locality, service: &api::Service, told: &mut Vec<Refusal>) -> Option<Self> {
        let api::Service {
            metadata,
            spec,
            status,
        } = service;
        if is_left_to_others(metadata) || spec.kind == "ExternalName" {
            return None;
        }
        let cluster_ips = match spec.cluster_ips.as_slice() {
            [] => std::slice::from_ref(&spec.cluster_ip),
            // One of each family.
            [_, _, _, ..] => &spec.cluster_ips[..2],
            all => all,
        };
        if matches!(cluster_ips[0].as_str(), "" | "None") {
            return None;
        }
        let mut frontends = |role, texts: &mut dyn Iterator<Item = &String>| -> Vec<IpAddr> {
            let judged = texts.map(|text| judge::frontend(role, text, &here.pods));
            judged.filter_map(|it| note(it, told)).collect()
        };
        let cluster_ips = frontends(Role::Cluster, &mut cluster_ips.iter());
        let mut external = frontends(Role::External, &mut spec.external_ips.iter());
        // Source ranges are left to kube-proxy, because only kube-proxy sees the source of a
        // packet.
        if spec.load_balancer_source_ranges.is_empty() {
            let ingress = status.load_balancer.ingress.iter();
            let ingress = ingress.filter(|it| !it.ip.is_empty() && it.ip_mode != "Proxy");
            external.extend(frontends(Role::Balancer, &mut ingress.map(|it| &it.ip)));
        }
        let affinity = (spec.session_affinity == "ClientIP").then(|| {
            let seconds = spec.session_affinity_config.client_ip.timeout_seconds;
            let seconds = seconds.map_or(AFFINITY, |it| u64::try_from(it).unwrap_or_default());
            Duration::from_secs(seconds.clamp(AFFINITY_BOUNDS.0, AFFINITY_BOUNDS.1))
        });
        let ports = spec.ports.iter();
        let ports = ports.filter_map(|port| OfferedPort::new(metadata, port, told));
        Some(Self {
            created: metadata.creation_timestamp.as_str().into(),
            ports: ports.collect(),
            cluster_ips: cluster_ips.into(),
            external: external.into(),
            affinity,
            is_local: spec.internal_traffic_policy == "Local",
        })
    }
}

impl OfferedPort {
    fn new(
        service: &api::Metadata,
        port: &api::ServicePort,
        told: &mut Vec<Refusal>,
    ) -> Option<Self> {
        let transport = judge::transport(&port.protocol)?;
        let node_port = match port.node_port {
            0 => None,
            number => note(judge::port(number), told),
        };
        // Another release of Rust may hash otherwise: then clients are free to choose once more.
        // Ports of one number would share what is remembered, and still get servers of their own.
        let mut id = DefaultHasher::new();
        (&service.namespace, &service.name, &port.name, transport).hash(&mut id);
        Some(Self {
            name: port.name.as_str().into(),
            transport,
            port: note(judge::port(port.port), told)?,
            node_port,
            id: id.finish(),
        })
    }
}

/// The servers of a Service in one EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service.
    pub service: ObjectName,
    /// Ports that all of its servers have: name, transport, number.
    pub ports: Box<[(Box<str>, ServiceTransport, u16)]>,
    /// Servers that take connections, or take them when no other server does.
    pub servers: Box<[SliceServer]>,
}

/// A server, without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceServer {
    /// The address.
    pub address: IpAddr,
    /// Whether the server is ready. A server that is not ready still serves, and is about to end.
    pub is_ready: bool,
    /// Whether the server is on this node.
    pub is_here: bool,
    /// The nodes that the server is meant for.
    pub for_nodes: Hint,
    /// The zones that the server is meant for.
    pub for_zones: Hint,
}

/// The clients that a server is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// No hint.
    None,
    /// Other nodes than this one.
    Others,
    /// This node, perhaps among others.
    Us,
}

impl Hint {
    fn new(names: &[api::Named], own: Option<&str>) -> Self {
        if names.is_empty() {
            return Self::None;
        }
        let is_own = own.is_some_and(|own| names.iter().any(|it| it.name == own));
        if is_own { Self::Us } else { Self::Others }
    }
}

impl Slice {
    /// Reads an EndpointSlice; `None` if the slice belongs to no Service that kube-proxy would
    /// serve. Refused parts are added to `told`.
    pub fn new(
        here: &Locality,
        slice: &api::EndpointSlice,
        told: &mut Vec<Refusal>,
    ) -> Option<Self> {
        let metadata = &slice.metadata;
        let service = metadata.labels.get(api::SERVICE_NAME)?;
        if service.is_empty() || is_left_to_others(metadata) || slice.address_type == "FQDN" {
            return None;
        }
        let ports = slice.ports.iter().filter_map(|it| {
            let transport = judge::transport(&it.protocol)?;
            let port = note(judge::port(it.port?), told)?;
            Some((it.name.as_str().into(), transport, port))
        });
        let ports = ports.collect();
        let servers = slice.endpoints.iter();
        let servers = servers.filter_map(|it| SliceServer::new(here, it, told));
        Some(Self {
            service: ObjectName::new(&metadata.namespace, service),
            ports,
            servers: servers.collect(),
        })
    }
}

impl SliceServer {
    fn new(here: &Locality, endpoint: &api::Endpoint, told: &mut Vec<Refusal>) -> Option<Self> {
        let address = judge::address(Role::Endpoint, endpoint.addresses.first()?);
        let address = note(address, told)?;
        let conditions = &endpoint.conditions;
        let is_ready = conditions.ready.unwrap_or(true);
        let is_ending = conditions.terminating.unwrap_or(false);
        let still_serves = is_ending && conditions.serving.unwrap_or(true);
        if !is_ready && !still_serves {
            return None;
        }
        let hostname = || endpoint.topology.get("kubernetes.io/hostname");
        let node = endpoint.node_name.as_ref().or_else(hostname);
        Some(Self {
            address,
            is_ready,
            is_here: node == Some(&here.node),
            for_nodes: Hint::new(&endpoint.hints.for_nodes, Some(&here.node)),
            for_zones: Hint::new(&endpoint.hints.for_zones, here.zone.as_deref()),
        })
    }
}

fn is_left_to_others(metadata: &api::Metadata) -> bool {
    let labels = api::LEFT_TO_OTHERS.iter();
    labels.copied().any(|it| metadata.labels.contains_key(it))
}

/// The accepted part as `Some`; a refusal is added to `told`.
fn note<T>(judged: Result<T, Refusal>, told: &mut Vec<Refusal>) -> Option<T> {
    judged.map_err(|refusal| tell(told, refusal)).ok()
}
