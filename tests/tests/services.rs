//! Services, node ports and host ports work while the fast path is on, and plain traffic beside
//! them takes the fast path.

mod services {
    pub mod cases;
    pub mod cluster;
    pub mod long_lived;
}

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::conversation::{Conversation, Server, Transport};
use overlay_tests::kube_proxy::Service;
use overlay_tests::status::{Counts, status, wait_for_path};
use overlay_tests::{Pod, wait_until};
use services::cases::{both_speak, failures};
use services::cluster::{BOTH, Cluster, INSIDE_LOCAL, INSIDE_REMOTE, LOCAL, PORT, REMOTE};
use services::long_lived::{SWITCH, all_speak, detach_all};

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

            // The reverse also holds for flows that the stack owns.
            let before = Counts::of(&node)?;
            both_speak(&conversation)?;
            let counts = &Counts::of(&node)? - &before;
            ensure!(counts.slow("stack_owned") > 0, "{transport}: {counts:?}");
            ensure!(counts.fast() == 0, "{transport}: {counts:?}");
        }
    }
    let node = lab.node(1);
    let flows = || status(&node).ok()?["fast_path"]["stack_owned_flows"].as_u64();
    ensure!(
        flows() >= Some(4),
        "{:?} flows are owned by the stack",
        flows()
    );
    // The conversations have ended. The agent learns this from connection tracking, which it reads
    // at once after a gap in the programs.
    node.run(["conntrack", "-F"])?;
    detach_all(&node)?;
    wait_until("the flows to be forgotten", SWITCH, || flows() == Some(0))
}

/// Two sockets of a pod share a source port: one talks to a Service, then the other to the backend
/// directly. For connection tracking the second clashes with the first, so that the stack gives the
/// second another source port.
#[test]
fn a_connection_that_the_stack_gives_another_port_works_at_once() -> Result<()> {
    const FIRST_PORT: u16 = 40000;
    let cluster = Cluster::up("svc-port", "auto")?;
    let lab = &cluster.lab;
    let client = lab.pod(1, 1);
    let mut opened = Vec::new();
    let ways = [LOCAL, REMOTE, INSIDE_LOCAL, INSIDE_REMOTE];
    for (number, service) in ways.into_iter().enumerate() {
        for transport in Transport::ALL {
            let servers = cluster.servers(service, transport);
            let port = FIRST_PORT + u16::try_from(number)?;
            let Service { name, address, .. } = cluster.services[service];
            let backend = cluster.services[service].backends[0];
            for target in [address, backend] {
                let what = format!("{transport} from port {port} to {target}, behind {name}");
                let place = client.namespace();
                let conversation =
                    Conversation::open_from(&place, port, transport, target, &servers)
                        .with_context(|| what.clone())?;
                both_speak(&conversation).with_context(|| what.clone())?;
                ensure!(conversation.seen() == client.address(), "{what}");
                opened.push((what, conversation));
            }
            // Each conversation keeps its own server, whichever side sends.
            all_speak(&opened, "all are open")?;
        }
    }
    Ok(())
}

/// The agent learns of a pod when the pod may have been sending for some time.
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

/// kube-proxy drops packets that connection tracking counts as invalid, and connection tracking has
/// not seen the packets of the fast path.
#[test]
fn errors_about_plain_traffic_pass_kube_proxys_rules() -> Result<()> {
    use std::net::UdpSocket;
    let cluster = Cluster::up("svc-errors", "auto")?;
    let lab = &cluster.lab;
    let client = lab.pod(1, 1);
    for to in [lab.pod(1, 2), lab.pod(2, 1)] {
        // No socket has the port: the pod answers with "port unreachable" (RFC 792).
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
    // Every hop to a pod of another node reports the end of the time to live.
    let target = lab.pod(2, 1).address().to_string();
    for ttl in ["1", "2"] {
        let output = client.exec(["ping", "-c1", "-W2", "-t", ttl, &target])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains("Time to live exceeded"), "TTL {ttl}: {text}");
    }
    Ok(())
}
