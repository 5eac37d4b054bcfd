//! Two nodes with separate sockets, with an echo of both transports in two pods.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::ProgramError;
use nix::libc;
use overlay_tests::conversation::{Server, Transport};
use overlay_tests::kube_proxy::Service;
use overlay_tests::status::wait_accelerated;
use overlay_tests::{Lab, Namespace, Options, Pod, StoreKind};
use overlay_user::datapath::pins::Pins;
use overlay_user::datapath::services::{self, SocketPrograms};
use overlay_user::datapath::{Error, object};
use overlay_user::service::{Frontend, ServiceTable, ServiceTransport, Serving, SessionAffinity};
use serde_json::{Value, json};

/// The port of every server: the test accepts connections itself, an echo answers datagrams.
pub const PORT: u16 = 8080;
/// Longest wait for an answer.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The directory in which the node's data path is pinned.
pub const PINS: &str = "/sys/fs/bpf/overlay";

/// The address at which connections to a server are accepted without the test.
pub fn accepting(server: SocketAddrV4) -> SocketAddrV4 {
    SocketAddrV4::new(*server.ip(), PORT + 1)
}

/// Address of a Service.
pub fn service(last: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, last), 80)
}

/// Services of both transports: last number of the address, servers, affinity.
pub fn table<'a>(
    services: impl IntoIterator<Item = (u8, &'a [SocketAddrV4], Option<Duration>)>,
) -> ServiceTable {
    let mut table = ServiceTable::default();
    for (last, servers, affinity) in services {
        let mut servers: Vec<SocketAddr> = servers.iter().map(|it| (*it).into()).collect();
        servers.sort_unstable();
        let serving = Arc::new(Serving {
            servers: servers.into(),
            affinity: affinity.map(|lasts| SessionAffinity {
                lasts,
                port_id: last.into(),
            }),
        });
        for transport in [ServiceTransport::Tcp, ServiceTransport::Udp] {
            let frontend = Frontend {
                address: (*service(last).ip()).into(),
                port: service(last).port(),
                transport,
            };
            table.insert(frontend, Arc::clone(&serving));
        }
    }
    table
}

/// A Service in the form that kube-proxy serves.
pub fn by_kube_proxy(last: u8, servers: &[SocketAddrV4]) -> Service {
    Service {
        // The name is a part of the names of chains.
        name: ["A", "B", "C", "D"][usize::from(last) % 4],
        address: service(last),
        backends: servers.to_vec(),
        node_port: None,
        local_only: false,
        masquerade_all: false,
    }
}

/// The lab, and its servers: the second pod of the first node, the first of the second.
pub struct Stage {
    pub lab: Lab,
    connections: BTreeMap<SocketAddrV4, Server>,
    /// A flag that ends the echoes.
    done: Arc<AtomicBool>,
}

impl Stage {
    pub fn up(name: &str) -> Result<Self> {
        Self::up_with(name, |options| options)
    }

    pub fn up_with(name: &str, change: impl FnOnce(Options) -> Options) -> Result<Self> {
        let lab = Lab::up(change(Options {
            store: StoreKind::Dir,
            apart: true,
            ..Options::for_test(name)
        }))?;
        wait_accelerated(&lab)?;
        let mut stage = Self {
            connections: BTreeMap::new(),
            done: Arc::default(),
            lab,
        };
        for pod in [stage.lab.pod(1, 2), stage.lab.pod(2, 1)] {
            stage.open(&pod)?;
        }
        Ok(stage)
    }

    /// Makes a pod a server.
    fn open(&mut self, pod: &Pod) -> Result<SocketAddrV4> {
        let (place, server) = (pod.namespace(), SocketAddrV4::new(pod.address(), PORT));
        let connections = Server::open(&place, Transport::Tcp, server)?;
        self.connections.insert(server, connections);
        let socket = place.inside(|| UdpSocket::bind(server))??;
        self.echo(socket, server)?;
        let listener = place.inside(|| TcpListener::bind(accepting(server)))??;
        // The thread ends with the test's process; connections are closed at once.
        thread::spawn(move || listener.incoming().for_each(drop));
        Ok(server)
    }

    /// Adds a server, in a separate pod.
    pub fn add_server(&mut self, node: usize) -> Result<(Pod, SocketAddrV4)> {
        let pod = self.lab.add_pod(node)?;
        let server = self.open(&pod)?;
        Ok((pod, server))
    }

    /// Writes an object to the agents' store, a directory.
    pub fn write(&self, file: &str, object: &Value) -> Result<()> {
        let (path, text) = (
            format!("{}/{file}", self.lab.store_endpoint()),
            object.to_string(),
        );
        let line = r#"mkdir -p "$(dirname "$1")"; printf %s "$2" >"$1.new"; mv "$1.new" "$1""#;
        let line = ["sh", "-c", line, "sh", &path, &text];
        self.lab.node(1).run(line).map(drop)
    }

    /// Writes a Service of both transports.
    pub fn write_service(&self, name: &str, last: u8) -> Result<()> {
        let address = service(last);
        let port = |name: &str| {
            let protocol = name.to_uppercase();
            json!({"name": name, "port": address.port(), "protocol": protocol})
        };
        let spec = json!({"clusterIP": address.ip(), "ports": [port("tcp"), port("udp")]});
        self.write(
            &format!("services/default.{name}.json"),
            &json!({"spec": spec}),
        )
    }

    /// Writes the servers of a Service: servers on one port, each with whether it stays.
    pub fn write_servers(&self, name: &str, servers: &[(SocketAddrV4, bool)]) -> Result<()> {
        let number = servers.first().map(|(server, _)| server.port());
        let port = |name: &str| {
            let protocol = name.to_uppercase();
            json!({"name": name, "port": number, "protocol": protocol})
        };
        let endpoint = |(server, stays): &(SocketAddrV4, bool)| {
            let conditions = json!({"ready": stays, "serving": true, "terminating": !stays});
            json!({"addresses": [server.ip()], "conditions": conditions})
        };
        let slice = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [port("tcp"), port("udp")],
            "endpoints": servers.iter().map(endpoint).collect::<Vec<_>>(),
        });
        self.write(&format!("endpointslices/default.{name}-1.json"), &slice)
    }

    /// The servers: of the first node, of the second.
    pub fn both(&self) -> [SocketAddrV4; 2] {
        [self.lab.pod(1, 2), self.lab.pod(2, 1)].map(|pod| SocketAddrV4::new(pod.address(), PORT))
    }

    /// Answers every datagram with the server's own address.
    fn echo(&self, socket: UdpSocket, server: SocketAddrV4) -> Result<()> {
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let done = Arc::clone(&self.done);
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while !done.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    // The client may have ended.
                    let _ = socket.send_to(server.to_string().as_bytes(), from);
                }
            }
        });
        Ok(())
    }

    /// Adds `count` echoes of datagrams, on the second node.
    pub fn echoes(&self, count: usize) -> Result<Vec<SocketAddrV4>> {
        let pod = self.lab.pod(2, 1);
        let address = |port| SocketAddrV4::new(pod.address(), port);
        let echoes: Vec<_> = (PORT + 100..).map(address).take(count).collect();
        for echo in &echoes {
            let socket = pod.namespace().inside(|| UdpSocket::bind(echo))??;
            self.echo(socket, *echo)?;
        }
        Ok(echoes)
    }

    /// The servers that accept connections at these addresses.
    pub fn servers(&self, at: &[SocketAddrV4]) -> Vec<Server> {
        at.iter().map(|at| self.connections[at].clone()).collect()
    }

    /// Serves a node's sockets, as the agent does.
    pub fn serve(&self, node: usize, table: &ServiceTable) -> Result<ServedSockets> {
        let group = self
            .lab
            .control_group(node)
            .context("nodes are not apart")?;
        ServedSockets::start(self.lab.node(node).namespace(), group, table)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// The programs on a node's sockets. Dropping this value leaves the state that a killed agent
/// leaves.
pub struct ServedSockets {
    place: Namespace,
    services: SocketPrograms,
}

impl ServedSockets {
    fn start(place: Namespace, group: PathBuf, table: &ServiceTable) -> Result<Self> {
        let services = place.inside(|| -> Result<SocketPrograms> {
            let pins = Pins::new(PINS);
            let (mut services, misfits) = SocketPrograms::load(object::services()?, &pins, group)?;
            if let Some(misfit) = misfits.first() {
                bail!("{misfit}");
            }
            services.update(table)?;
            services.attach()?;
            Ok(services)
        })??;
        Ok(Self { place, services })
    }

    pub fn update(&mut self, table: &ServiceTable) -> Result<()> {
        self.services.update(table)?;
        Ok(())
    }

    /// Whether the program for packets still runs after a look at all sockets, which some kernels
    /// do not allow (`None`): then the program continues to run.
    pub fn is_telling_after_a_look(&mut self) -> Result<Option<bool>> {
        let looked = self.place.inside(|| self.services.look_for_gone())?;
        let is_telling = self.services.is_telling();
        match looked {
            Err(error) if is_forbidden(&error) => {
                ensure!(
                    is_telling,
                    "sockets are not asked, and not looked at: {error}"
                );
                eprintln!("this kernel does not allow a look at all sockets");
                Ok(None)
            }
            looked => Ok(looked.map(|()| Some(is_telling))?),
        }
    }

    /// The counters, by operation and verdict.
    pub fn counters(&self) -> Result<BTreeMap<(&'static str, &'static str), u64>> {
        let counters = self
            .place
            .inside(|| services::counters(&Pins::new(PINS)))??;
        let counters = counters.into_iter();
        Ok(counters
            .map(|(operation, verdict, times)| ((operation.name(), verdict.name()), times))
            .collect())
    }
}

/// A socket for datagrams in a place.
pub fn socket(place: &Namespace, bound: &str) -> Result<UdpSocket> {
    let socket = place.inside(|| UdpSocket::bind(bound))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A socket for datagrams that is connected.
pub fn connected(place: &Namespace, to: impl Into<SocketAddr>) -> Result<UdpSocket> {
    let socket = socket(place, "0.0.0.0:0")?;
    socket.connect(to.into())?;
    Ok(socket)
}

/// Sends a datagram to an address; returns the server that answers, and the source address that the
/// socket sees.
pub fn ask(socket: &UdpSocket, to: SocketAddr) -> Result<(SocketAddrV4, SocketAddr)> {
    socket.send_to(b"who?", to).context("send")?;
    heard(socket)
}

/// Sends a datagram by a connected socket; returns the same.
pub fn ask_peer(socket: &UdpSocket) -> Result<(SocketAddrV4, SocketAddr)> {
    socket.send(b"who?").context("send")?;
    heard(socket)
}

/// Whether an error means that the socket's server does not serve any more.
pub fn is_told(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

fn heard(socket: &UdpSocket) -> Result<(SocketAddrV4, SocketAddr)> {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).context("receive")?;
    let text = std::str::from_utf8(&buffer[..length]).context("an answer")?;
    Ok((text.parse().context("an address")?, from))
}

/// Whether the kernel refuses every program that iterates over the storage of sockets, as one
/// kernel of 6.18 did. The verifier refuses a wrong program with `EACCES` or `EINVAL`, never with
/// `EPERM`.
fn is_forbidden(error: &Error) -> bool {
    let Error::Program { source, .. } = error else {
        return false;
    };
    let ProgramError::LoadError { io_error, .. } = &**source else {
        return false;
    };
    io_error.raw_os_error() == Some(libc::EPERM)
}
