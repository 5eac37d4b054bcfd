//! Services, node ports and host ports work while the fast path is on, and plain traffic beside them takes it.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::conversation::{Conversation, Server, Transport};
use overlay_tests::kube_proxy::{self, HostPort, Service};
use overlay_tests::status::{Counts, status, wait_accelerated, wait_for_path};
use overlay_tests::{Lab, Namespace, Node, Options, Pod, StoreKind, lab, wait_until};
use serde_json::json;

/// The port that every pod serves.
const PORT: u16 = 8080;
/// The port of every Service.
const SERVICE_PORT: u16 = 80;
/// How long an agent may take to bring the fast path up or down.
const SWITCH: Duration = Duration::from_secs(20);
/// Silence in a conversation, long enough for the agent to do all it wants meanwhile.
const IDLE: Duration = Duration::from_secs(2);

/// A lab of two nodes with two pods each, on which kube-proxy serves.
struct Cluster {
    lab: Lab,
    services: Vec<Service>,
    /// One of each transport in each backend.
    servers: Vec<(SocketAddrV4, Transport, Server)>,
}

const LOCAL: usize = 0;
const REMOTE: usize = 1;
const MASQUERADED: usize = 2;
const BOTH: usize = 3;
const ANYWHERE: usize = 4;
const LOCAL_ONLY: usize = 5;

impl Cluster {
    fn up(name: &str, fast_path: &str) -> Result<Self> {
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
        // Seen from n1.
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
        ];
        let network = "10.244.0.0/16".parse()?;
        for node in lab.nodes() {
            // kube-proxy asks for it: replies between pods of one node pass the bridge only.
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
    fn servers(&self, service: usize, transport: Transport) -> Vec<Server> {
        let backends = &self.services[service].backends;
        let servers = self.servers.iter();
        let behind = servers.filter(|(at, of, _)| *of == transport && backends.contains(at));
        behind.map(|(_, _, server)| server.clone()).collect()
    }

    /// Opens a conversation with a service.
    fn call(&self, from: &Pod, service: usize, transport: Transport) -> Result<Conversation> {
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

/// The port of n1 that leads to its second pod.
const HOST_PORT: u16 = 31000;

/// Both sides speak, the server last and first.
fn both_speak(conversation: &Conversation) -> Result<()> {
    conversation.server_speaks()?;
    conversation.client_speaks()?;
    conversation.server_speaks()
}

/// Who calls, where, who answers, and which address the answering pod must see.
struct Case {
    what: &'static str,
    from: Namespace,
    target: SocketAddrV4,
    service: usize,
    seen: Option<IpAddr>,
}

fn cases(cluster: &Cluster) -> Result<Vec<Case>> {
    let lab = &cluster.lab;
    let (near_client, near_backend) = (lab.pod(1, 1), lab.pod(1, 2));
    let far_client = lab.pod(2, 2);
    let outside = lab.namespace("outside")?;
    let own = |pod: &Pod| Some(IpAddr::V4(pod.address()));
    let gateway = lab.node(1).subnet()?.hosts().next().context("a gateway")?;
    let service = |service: usize| cluster.services[service].address;
    let node = |number: usize, port| SocketAddrV4::new(lab.node(number).underlay_address(), port);
    let case = |what, from: Namespace, target, service, seen| Case {
        what,
        from,
        target,
        service,
        seen,
    };
    let pod = |pod: &Pod| pod.namespace();
    let host = |number: usize| lab.node(number).namespace();
    let direct = |service: usize| cluster.services[service].backends[0];
    Ok(vec![
        case(
            "plain, same node",
            pod(&near_client),
            direct(LOCAL),
            LOCAL,
            own(&near_client),
        ),
        case(
            "plain, another node",
            pod(&near_client),
            direct(REMOTE),
            REMOTE,
            own(&near_client),
        ),
        case(
            "ClusterIP, backend on the same node",
            pod(&near_client),
            service(LOCAL),
            LOCAL,
            own(&near_client),
        ),
        case(
            "ClusterIP, backend on another node",
            pod(&near_client),
            service(REMOTE),
            REMOTE,
            own(&near_client),
        ),
        case(
            "ClusterIP, masqueraded",
            pod(&near_client),
            service(MASQUERADED),
            MASQUERADED,
            None,
        ),
        case(
            "ClusterIP, masqueraded, backend on the same node",
            pod(&far_client),
            service(MASQUERADED),
            MASQUERADED,
            None,
        ),
        case(
            "ClusterIP, either backend",
            pod(&near_client),
            service(BOTH),
            BOTH,
            own(&near_client),
        ),
        case(
            "ClusterIP, the client itself",
            pod(&near_backend),
            service(LOCAL),
            LOCAL,
            Some(gateway.into()),
        ),
        case(
            "ClusterIP from a node, backend on the same node",
            host(1),
            service(LOCAL),
            LOCAL,
            None,
        ),
        case(
            "ClusterIP from a node, backend on another node",
            host(1),
            service(REMOTE),
            REMOTE,
            None,
        ),
        case(
            "node port from outside, any node",
            outside.clone(),
            node(1, 30001),
            ANYWHERE,
            None,
        ),
        case(
            "node port from a pod, any node",
            pod(&near_client),
            node(1, 30001),
            ANYWHERE,
            None,
        ),
        case(
            "node port from a pod, another node",
            pod(&near_client),
            node(2, 30001),
            ANYWHERE,
            None,
        ),
        case(
            "node port from outside, that node's pods",
            outside.clone(),
            node(1, 30002),
            LOCAL_ONLY,
            Some(lab::OUTSIDE_GATEWAY.into()),
        ),
        case(
            "node port from a pod, that node's pods",
            pod(&near_client),
            node(1, 30002),
            LOCAL_ONLY,
            own(&near_client),
        ),
        case(
            "host port from outside",
            outside,
            node(1, HOST_PORT),
            LOCAL,
            Some(lab::OUTSIDE_GATEWAY.into()),
        ),
        case(
            "host port from a pod of another node",
            pod(&far_client),
            node(1, HOST_PORT),
            LOCAL,
            Some(lab.node(2).underlay_address().into()),
        ),
        case(
            "host port from a pod of the same node",
            pod(&near_client),
            node(1, HOST_PORT),
            LOCAL,
            Some(gateway.into()),
        ),
        case(
            "host port from the node itself",
            host(1),
            node(1, HOST_PORT),
            LOCAL,
            None,
        ),
        case(
            "host port at the gateway, from a pod of another node",
            pod(&far_client),
            SocketAddrV4::new(gateway, HOST_PORT),
            LOCAL,
            own(&far_client),
        ),
        case(
            "host port at the gateway, from a pod of the same node",
            pod(&near_client),
            SocketAddrV4::new(gateway, HOST_PORT),
            LOCAL,
            Some(gateway.into()),
        ),
    ])
}

/// Every case with both transports; returns what failed.
fn failures(cluster: &Cluster) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for case in cases(cluster)? {
        for transport in Transport::ALL {
            let servers = cluster.servers(case.service, transport);
            let held = Conversation::open(&case.from, transport, case.target, &servers).and_then(
                |conversation| {
                    both_speak(&conversation)?;
                    let seen = conversation.seen();
                    let right = case.seen.is_none_or(|expected| seen == expected);
                    ensure!(right, "the pod sees {seen} instead of {:?}", case.seen);
                    Ok(())
                },
            );
            if let Err(error) = held {
                failures.push(format!("{}, {transport}: {error:#}", case.what));
            }
        }
    }
    Ok(failures)
}

/// A plain conversation between pods, which must see each other.
fn plain(from: &Pod, to: &Pod, transport: Transport, port: u16) -> Result<()> {
    let address = SocketAddrV4::new(to.address(), port);
    let server = Server::open(&to.namespace(), transport, address)?;
    talk_plainly(from, address, transport, &[server])
}

fn talk_plainly(
    from: &Pod,
    address: SocketAddrV4,
    transport: Transport,
    servers: &[Server],
) -> Result<()> {
    let conversation = Conversation::open(&from.namespace(), transport, address, servers)?;
    ensure!(conversation.seen() == from.address());
    for _ in 0..5 {
        both_speak(&conversation)?;
    }
    Ok(())
}

#[test]
fn services_work_beside_the_fast_path() -> Result<()> {
    let cluster = Cluster::up("svc", "auto")?;
    let failures = failures(&cluster)?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    // Both backends get turns: 64 calls in a row to one of them would be a chance of 1 to 2^63.
    let mut answered = [false; 2];
    for _ in 0..64 {
        let conversation = cluster.call(&cluster.lab.pod(1, 1), BOTH, Transport::Tcp)?;
        conversation.server_speaks()?;
        answered[conversation.answered_by()] = true;
    }
    ensure!(
        answered == [true; 2],
        "only one backend answers: {answered:?}"
    );
    Ok(())
}

#[test]
fn services_work_on_the_kernel_path() -> Result<()> {
    let cluster = Cluster::up("svc-off", "off")?;
    let failures = failures(&cluster)?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn plain_traffic_beside_services_stays_on_the_fast_path() -> Result<()> {
    let cluster = Cluster::up("svc-plain", "auto")?;
    let lab = &cluster.lab;
    let client = lab.pod(1, 1);
    for transport in Transport::ALL {
        for (service, backend) in [(LOCAL, lab.pod(1, 2)), (REMOTE, lab.pod(2, 1))] {
            let servers = cluster.servers(service, transport);
            let address = cluster.services[service].address;
            let conversation =
                Conversation::open(&client.namespace(), transport, address, &servers)?;
            both_speak(&conversation)?;

            let node = lab.node(1);
            let before = Counts::of(&node)?;
            plain(&client, &backend, transport, PORT + 1)?;
            talk_plainly(
                &client,
                SocketAddrV4::new(backend.address(), PORT),
                transport,
                &servers,
            )?;
            let counts = &Counts::of(&node)? - &before;
            let fast = if service == LOCAL {
                counts.redirected
            } else {
                counts.encapsulated.min(counts.decapsulated)
            };
            ensure!(fast >= 10, "{transport} to {}: {counts:?}", backend.name());
            ensure!(
                counts.slow.is_empty(),
                "{transport} to {}: {counts:?}",
                backend.name()
            );

            // And the other way round for what the stack owns.
            let before = Counts::of(&node)?;
            both_speak(&conversation)?;
            let counts = &Counts::of(&node)? - &before;
            ensure!(counts.slow("stack_owned") > 0, "{transport}: {counts:?}");
            ensure!(counts.fast() == 0, "{transport}: {counts:?}");
        }
    }
    let flows = status(&lab.node(1))?;
    ensure!(
        flows["fast_path"]["stack_owned_flows"].as_u64() >= Some(4),
        "{flows}"
    );
    Ok(())
}

/// Ends the agents with `signal` and starts them again.
fn restart(lab: &Lab, signal: Signal, fast_path: &str) -> Result<()> {
    for node in lab.nodes() {
        node.stop_agent(signal)?;
        node.start_agent(&[&format!("--fast-path={fast_path}")])?;
        wait_for_state(
            &node,
            if fast_path == "auto" {
                "active"
            } else {
                "absent"
            },
        )?;
    }
    Ok(())
}

/// Takes every program of ours off its hook, and waits until the agent has put them back.
fn detach_all(node: &Node) -> Result<()> {
    let attached = |status: &serde_json::Value| {
        status["attachments"].as_array().map_or(0, |hooks| {
            hooks
                .iter()
                .filter(|hook| hook["programs"] != json!([]))
                .count()
        })
    };
    let before = attached(&status(node)?);
    ensure!(
        before >= 6,
        "only {before} programs of {} are attached",
        node.name()
    );
    node.run(["sh", "-c", "rm /sys/fs/bpf/overlay/v1/links/*"])?;
    wait_until("the programs to be back", SWITCH, || {
        status(node).is_ok_and(|status| attached(&status) == before)
    })
}

fn wait_for_state(node: &Node, state: &str) -> Result<()> {
    let what = format!("the fast path of {} to be {state}", node.name());
    wait_until(&what, SWITCH, || {
        status(node).is_ok_and(|status| status["fast_path"]["state"] == state)
    })
    .with_context(|| node.agent_log_tail())
}

/// Opens a conversation of each kind that the stack has to translate both ways.
fn open_all(cluster: &Cluster, opened: &mut Vec<(String, Conversation)>, when: &str) -> Result<()> {
    for case in cases(cluster)? {
        for transport in Transport::ALL {
            let servers = cluster.servers(case.service, transport);
            let what = format!("{}, {transport}, opened {when}", case.what);
            let conversation = Conversation::open(&case.from, transport, case.target, &servers)
                .with_context(|| what.clone())?;
            both_speak(&conversation).with_context(|| what.clone())?;
            opened.push((what, conversation));
        }
    }
    Ok(())
}

fn all_speak(opened: &[(String, Conversation)], now: &str) -> Result<()> {
    let failures: Vec<String> = opened
        .iter()
        .filter_map(|(what, conversation)| {
            let error = both_speak(conversation).err()?;
            Some(format!("{what}: {error:#}"))
        })
        .collect();
    ensure!(failures.is_empty(), "{now}:\n{}", failures.join("\n"));
    Ok(())
}

#[test]
fn long_lived_flows_outlive_every_change_of_path() -> Result<()> {
    let cluster = Cluster::up("svc-long", "off")?;
    let lab = &cluster.lab;
    let mut opened = Vec::new();
    open_all(&cluster, &mut opened, "before the fast path")?;
    restart(lab, Signal::SIGTERM, "auto")?;
    thread::sleep(IDLE);
    all_speak(&opened, "the fast path is on")?;
    open_all(&cluster, &mut opened, "with the fast path on")?;
    restart(lab, Signal::SIGKILL, "auto")?;
    all_speak(&opened, "the agents are new")?;
    for node in lab.nodes() {
        detach_all(&node)?;
        wait_for_state(&node, "active")?;
    }
    all_speak(&opened, "the programs were taken off and are back")?;
    for node in lab.nodes() {
        node.stop_agent(Signal::SIGKILL)?;
    }
    open_all(&cluster, &mut opened, "without an agent")?;
    all_speak(&opened, "there is no agent")?;
    for node in lab.nodes() {
        node.start_agent(&[])?;
    }
    restart(lab, Signal::SIGTERM, "off")?;
    all_speak(&opened, "the fast path is off")?;
    restart(lab, Signal::SIGTERM, "auto")?;
    all_speak(&opened, "the fast path is on again")
}

/// The agent learns of a pod when the pod may long have been talking.
#[test]
fn flows_of_a_pod_that_the_agent_does_not_know_yet_survive() -> Result<()> {
    let cluster = Cluster::up("svc-new", "auto")?;
    let lab = &cluster.lab;
    let node = lab.node(1);
    node.stop_agent(Signal::SIGKILL)?;
    let newcomer = lab.add_pod(1)?;
    let mut opened = Vec::new();
    for transport in Transport::ALL {
        for service in [LOCAL, REMOTE, BOTH] {
            let what = format!("{transport}, {}", cluster.services[service].name);
            let conversation = cluster.call(&newcomer, service, transport)?;
            both_speak(&conversation).with_context(|| what.clone())?;
            opened.push((what, conversation));
        }
    }
    node.start_agent(&[])?;
    wait_for_path(&node, &newcomer.address().to_string(), "fast")?;
    all_speak(&opened, "the agent knows the pod")?;
    let before = Counts::of(&node)?;
    plain(&newcomer, &lab.pod(2, 1), Transport::Tcp, PORT + 1)?;
    let counts = &Counts::of(&node)? - &before;
    ensure!(
        counts.encapsulated > 0 && counts.decapsulated > 0,
        "{counts:?}"
    );
    ensure!(counts.slow.is_empty(), "{counts:?}");
    Ok(())
}

/// kube-proxy drops what connection tracking calls invalid, and it has not seen what the fast path carries.
#[test]
fn errors_about_plain_traffic_pass_kube_proxys_rules() -> Result<()> {
    use std::net::UdpSocket;
    let cluster = Cluster::up("svc-errors", "auto")?;
    let lab = &cluster.lab;
    let client = lab.pod(1, 1);
    for to in [lab.pod(1, 2), lab.pod(2, 1)] {
        // Nobody listens: the pod answers with "port unreachable" (RFC 792).
        let socket = client
            .namespace()
            .inside(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.connect((to.address(), 9))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send(b"anybody?")?;
        let error = socket.recv(&mut [0; 16]).expect_err("nobody can answer");
        let refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
        ensure!(refused, "{} does not refuse: {error}", to.name());
    }
    // Hop by hop to a pod of another node: both nodes tell that the time to live has ended.
    let target = lab.pod(2, 1).address().to_string();
    for ttl in ["1", "2"] {
        let output = client.exec(["ping", "-c1", "-W2", "-t", ttl, &target])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains("Time to live exceeded"), "TTL {ttl}: {text}");
    }
    Ok(())
}
