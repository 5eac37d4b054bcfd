//! A small cluster on which kube-proxy serves.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result};
use overlay_tests::conversation::{Conversation, Server, Transport};
use overlay_tests::kube_proxy::{self, HostPort, Service};
use overlay_tests::status::wait_accelerated;
use overlay_tests::{Lab, Options, Pod, StoreKind};

/// The port that every pod serves.
pub const PORT: u16 = 8080;
/// The port of every Service.
const SERVICE_PORT: u16 = 80;
/// The port of n1 that leads to its second pod.
pub const HOST_PORT: u16 = 31000;

/// The services, as seen from node n1: the backend of this one is on that node.
pub const LOCAL: usize = 0;
/// The backend is on the other node.
pub const REMOTE: usize = 1;
/// Every client is masqueraded.
pub const MASQUERADED: usize = 2;
/// A backend on each node.
pub const BOTH: usize = 3;
/// With a node port.
pub const ANYWHERE: usize = 4;
/// With a node port that leads to that node's pods only.
pub const LOCAL_ONLY: usize = 5;
/// Like [`LOCAL`] and [`REMOTE`], at addresses inside the overlay's network.
pub const INSIDE_LOCAL: usize = 6;
/// See [`INSIDE_LOCAL`].
pub const INSIDE_REMOTE: usize = 7;

/// A lab of two nodes with two pods each, on which kube-proxy serves.
pub struct Cluster {
    pub lab: Lab,
    pub services: Vec<Service>,
    /// One server of each transport in each backend.
    servers: Vec<(SocketAddrV4, Transport, Server)>,
}

impl Cluster {
    /// A lab of two nodes with all services.
    pub fn up(name: &str, fast_path: &str) -> Result<Self> {
        let lab = Lab::up(Options {
            store: StoreKind::Dir,
            fast_path: fast_path.to_owned(),
            ..Options::for_test(name)
        })?;
        if fast_path == "auto" {
            wait_accelerated(&lab)?;
        }
        let backend = |node, pod| SocketAddrV4::new(lab.pod(node, pod).address(), PORT);
        let service = |name, last, backends: &[SocketAddrV4]| Service {
            name,
            address: SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, last), SERVICE_PORT),
            backends: backends.to_vec(),
            node_port: None,
            local_only: false,
            masquerade_all: false,
        };
        // Near and far as seen from n1.
        let (near, far) = (backend(1, 2), backend(2, 1));
        let services = vec![
            service("NEAR", 1, &[near]),
            service("FAR", 2, &[far]),
            Service {
                masquerade_all: true,
                ..service("MASQ", 3, &[far])
            },
            service("BOTH", 4, &[near, far]),
            Service {
                node_port: Some(30001),
                ..service("ANY", 5, &[far])
            },
            Service {
                node_port: Some(30002),
                local_only: true,
                ..service("ONLY", 6, &[near])
            },
            Service {
                address: SocketAddrV4::new(Ipv4Addr::new(10, 244, 200, 1), SERVICE_PORT),
                ..service("INNEAR", 7, &[near])
            },
            Service {
                address: SocketAddrV4::new(Ipv4Addr::new(10, 244, 200, 2), SERVICE_PORT),
                ..service("INFAR", 8, &[far])
            },
        ];
        let network = "10.244.0.0/16".parse()?;
        for node in lab.nodes() {
            // kube-proxy requires this setting, because replies between pods of one node pass the
            // bridge only.
            node.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"])?;
            kube_proxy::serve(&node, network, &services)?;
        }
        let port = HostPort {
            port: HOST_PORT,
            pod: near,
            subnet: lab.node(1).subnet()?,
        };
        kube_proxy::map_ports(&lab.node(1), &[port])?;
        let mut servers = Vec::new();
        for (pod, address) in [(lab.pod(1, 2), near), (lab.pod(2, 1), far)] {
            for transport in Transport::ALL {
                let server = Server::open(&pod.namespace(), transport, address)?;
                servers.push((address, transport, server));
            }
        }
        Ok(Self {
            lab,
            services,
            servers,
        })
    }

    /// The servers in the pods behind a service.
    pub fn servers(&self, service: usize, transport: Transport) -> Vec<Server> {
        let backends = &self.services[service].backends;
        let servers = self.servers.iter();
        let behind = servers.filter(|(at, of, _)| *of == transport && backends.contains(at));
        behind.map(|(_, _, server)| server.clone()).collect()
    }

    /// Opens a conversation with a service.
    pub fn call(&self, from: &Pod, service: usize, transport: Transport) -> Result<Conversation> {
        let servers = self.servers(service, transport);
        let address = self.services[service].address;
        Conversation::open(&from.namespace(), transport, address, &servers).with_context(|| {
            format!(
                "{transport} from {} to {}",
                from.name(),
                self.services[service].name
            )
        })
    }
}
