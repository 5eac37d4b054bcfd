//! Services at the socket: a socket that asks for a Service gets a server when it connects or first
//! sends, and its packets are plain from the first one on.
//!
//! In all tests but one, the test itself maintains programs and maps, by the agent's own code.

mod sockets {
    pub mod agent;
    pub mod builds;
    pub mod changes;
    pub mod disturbed;
    pub mod load;
    pub mod opted_out;
    pub mod resolvers;
    pub mod stage;
}

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_common::socket::{MAX_TRANSLATIONS, Operation, Verdict};
use overlay_tests::conversation::{Conversation, Transport};
use overlay_tests::kube_proxy;
use overlay_tests::status::Counts;
use overlay_tests::{Namespace, wait_until};
use serde_json::{Value, json};
use sockets::stage::{self, PATIENCE, Stage, ask, service, table};

fn mapped(address: SocketAddrV4) -> SocketAddr {
    let ip: Ipv6Addr = address.ip().to_ipv6_mapped();
    (ip, address.port()).into()
}

/// Opens a connection, and returns the peer that the socket reports.
fn peer_of_connection(place: &Namespace, to: SocketAddr) -> Result<SocketAddr> {
    let stream = place.inside(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    let stream = stream.with_context(|| format!("connect to {to}"))?;
    Ok(stream.peer_addr()?)
}

#[test]
fn a_socket_gets_a_server() -> Result<()> {
    let stage = Stage::up("sock")?;
    let lab = &stage.lab;
    let (client, place) = (lab.pod(1, 1), lab.pod(1, 1).namespace());
    let [_, far] = stage.both();
    let address = service(1);
    let serving = stage.serve(1, &table([(1, &[far][..], None)]))?;
    let before = Counts::of(&lab.node(1))?;

    // For a connection, the server sees the pod's address, without a translation between.
    let servers = stage.servers(&[far]);
    let conversation = Conversation::open(&place, Transport::Tcp, address, &servers)?;
    ensure!(conversation.seen() == client.address(), "masqueraded");
    for _ in 0..3 {
        conversation.client_speaks()?;
        conversation.server_speaks()?;
    }
    let socket = stage::connected(&place, address)?;
    ensure!(
        socket.peer_addr()? == address.into(),
        "{:?}",
        socket.peer_addr()
    );
    for _ in 0..3 {
        let (answered_by, from) = stage::ask_peer(&socket)?;
        ensure!(
            answered_by == far && from == address.into(),
            "{answered_by}, from {from}"
        );
    }
    // The socket reports the Service, not the server.
    for to in [SocketAddr::from(address), mapped(address)] {
        let peer = peer_of_connection(&place, to)?;
        ensure!(peer == to, "{to} is told to be {peer}");
    }
    // This is for unconnected sockets of both families.
    for (bound, to) in [("0.0.0.0:0", address.into()), ("[::]:0", mapped(address))] {
        let socket = stage::socket(&place, bound)?;
        for _ in 0..3 {
            let (answered_by, from) = ask(&socket, to)?;
            ensure!(answered_by == far, "{to}: {answered_by} answers");
            ensure!(from == to, "{to}: the answer comes from {from}");
        }
    }
    let counts = &Counts::of(&lab.node(1))? - &before;
    ensure!(
        counts.encapsulated > 0 && counts.slow.is_empty(),
        "{counts:?}"
    );
    let tracked = lab
        .node(1)
        .run(["conntrack", "-L", "-d", &address.ip().to_string()])?;
    ensure!(tracked.is_empty(), "the stack translates: {tracked}");

    let counters = serving.counters()?;
    for (operation, verdict, times) in [
        (Operation::Connect, Verdict::Translated, 4),
        (Operation::Send, Verdict::Translated, 6),
        (Operation::Receive, Verdict::Named, 9),
        (Operation::Name, Verdict::Named, 3),
    ] {
        let counted = counters.get(&(operation.name(), verdict.name()));
        ensure!(
            counted >= Some(&times),
            "{operation:?} {verdict:?}: {counters:?}"
        );
    }
    Ok(())
}

#[test]
fn an_agent_serves_what_its_store_says() -> Result<()> {
    let stage = Stage::up("sock-agent")?;
    let lab = &stage.lab;
    let (node, client) = (lab.node(1), lab.pod(1, 1).namespace());
    let [near, far] = stage.both();
    let address = service(1);
    let store = lab.store_endpoint();
    let serve = |server: SocketAddrV4| stage.write_servers("web", &[(server, true)]);
    let asked = || {
        let socket = stage::socket(&client, "0.0.0.0:0")?;
        // A datagram without a translation is lost.
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        ask(&socket, address.into())
    };
    let answers = |server| asked().is_ok_and(|answer| answer == (server, address.into()));

    stage.write_service("web", 1)?;
    serve(far)?;
    wait_until("a server to answer", PATIENCE, || answers(far))
        .with_context(|| node.agent_log_tail())?;
    // The agent writes its note for the tools a moment later.
    let status = || node.run(["overlayctl", "status"]);
    wait_until("the status to say so", PATIENCE, || {
        status().is_ok_and(|shown| shown.contains("at the socket"))
    })
    .with_context(|| format!("{:?}", status()))?;
    serve(near)?;
    wait_until("another server to answer", PATIENCE, || answers(near))?;

    // Without the agent no server is chosen, because no process keeps the tables up to date.
    node.stop_agent(Signal::SIGKILL)?;
    ensure!(asked().is_err(), "who has chosen?");
    node.start_agent(&[])?;
    wait_until("a server to answer again", PATIENCE, || answers(near))?;
    node.run(["rm", &format!("{store}/services/default.web.json")])?;
    let shown = || node.json(["overlayctl", "services", "--output", "json"]);
    wait_until("the Service to go", PATIENCE, || {
        shown().is_ok_and(|shown| shown["services"] == json!([]))
    })?;

    // Refused parts are reported, in every form.
    let hostile = json!({"spec": {"clusterIP": "127.0.0.1", "ports": [{"port": 80}]}});
    stage.write("services/default.evil.json", &hostile)?;
    let object = "Service default/evil";
    let why = "the cluster IP 127.0.0.1 is a loopback address";
    let is_told = |refused: &Value| {
        let told = &refused["told"][0];
        let reason = told["reasons"][0].as_str().unwrap_or_default();
        told["subject"] == object && reason.starts_with(why)
    };
    wait_until("the refusal to be told", PATIENCE, || {
        shown().is_ok_and(|shown| is_told(&shown["refused"]))
    })?;
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    ensure!(is_told(&status["services"]["refused"]), "{status}");
    for command in ["status", "services"] {
        let text = node.run(["overlayctl", command])?;
        ensure!(text.contains(object) && text.contains(why), "{text}");
    }
    let answer = node.http_get("/readyz")?;
    let line = format!("refused Services: 1 not taken as they are, for instance {object}: {why}");
    ensure!(
        answer.status == 200 && answer.body.contains(&line),
        "{answer:?}"
    );
    let metrics = node.http_get("/metrics")?.body;
    let line = "\noverlay_refused_services{reason=\"special_address\"} 1\n";
    ensure!(metrics.contains(line), "{metrics}");
    node.run(["rm", &format!("{store}/services/default.evil.json")])?;
    wait_until("the refusal to go", PATIENCE, || {
        shown().is_ok_and(|shown| shown["refused"]["told"] == json!([]))
    })
}

#[test]
fn servers_are_chosen_as_by_kube_proxy() -> Result<()> {
    let stage = Stage::up("sock-choice")?;
    let node = stage.lab.node(1);
    let place = stage.lab.pod(1, 1).namespace();
    let both = stage.both();
    let mut serving = stage.serve(1, &table([(1, &both[..], None), (2, &[][..], None)]))?;
    let connection = || -> Result<SocketAddrV4> {
        let servers = stage.servers(&both);
        let conversation = Conversation::open(&place, Transport::Tcp, service(1), &servers)?;
        Ok(both[conversation.answered_by()])
    };
    let datagram = || Ok(stage::ask_peer(&stage::connected(&place, service(1))?)?.0);
    // Fewer than 5 of 40 for one of the two have a probability of 1 to 10 million.
    let answered = tally(40, connection)?;
    ensure!(
        answered.len() == 2 && answered.values().all(|it| *it >= 5),
        "{answered:?}"
    );
    let answered = tally(40, datagram)?;
    ensure!(
        answered.len() == 2 && answered.values().all(|it| *it >= 5),
        "{answered:?}"
    );

    // With affinity the server is always the same.
    let sticky = Some(Duration::from_secs(3600));
    serving.update(&table([(1, &both[..], sticky), (2, &[][..], None)]))?;
    let answered = tally(20, connection)?;
    ensure!(answered.len() == 1, "{answered:?}");

    // Without a server the result is kube-proxy's.
    let nobody = service(2);
    let address = nobody.ip().to_string();
    node.run(["iptables", "-I", "FORWARD", "-d", &address, "-j", "REJECT"])?;
    let refused = place.inside(|| TcpStream::connect_timeout(&nobody.into(), PATIENCE))?;
    let kind = refused.err().map(|error| error.kind());
    ensure!(kind == Some(ErrorKind::ConnectionRefused), "{kind:?}");

    // One socket uses two Services with one server: it sees the address of the one that it asked.
    let far = [both[1]];
    serving.update(&table([(1, &far[..], None), (2, &far[..], None)]))?;
    let socket = stage::socket(&place, "0.0.0.0:0")?;
    for last in [1, 2, 1] {
        let (_, from) = ask(&socket, service(last).into())?;
        ensure!(from == service(last).into(), "asked {last}, told {from}");
    }

    // One socket uses more Services than it has room for: the last one is left to kube-proxy.
    let servers = stage.echoes(MAX_TRANSLATIONS + 1)?;
    let services: Vec<_> = (10..).zip(servers.chunks(1)).collect();
    let all = services
        .iter()
        .map(|(last, servers)| (*last, *servers, None));
    serving.update(&table(all))?;
    let by_kube_proxy = services
        .last()
        .map(|(last, at)| stage::by_kube_proxy(*last, at));
    kube_proxy::serve(&node, "10.244.0.0/16".parse()?, by_kube_proxy.as_slice())?;
    let socket = stage::socket(&place, "0.0.0.0:0")?;
    for (last, server) in &services {
        let to = service(*last).into();
        let (answered_by, from) = ask(&socket, to)?;
        ensure!(
            [answered_by] == **server && from == to,
            "{to}: {answered_by}, from {from}"
        );
    }
    let counters = serving.counters()?;
    let full = counters.get(&(Operation::Send.name(), Verdict::Full.name()));
    ensure!(full == Some(&1), "{counters:?}");
    Ok(())
}

/// The servers that answer, in this many attempts.
fn tally(
    times: usize,
    ask: impl Fn() -> Result<SocketAddrV4>,
) -> Result<BTreeMap<SocketAddrV4, usize>> {
    let mut answered = BTreeMap::new();
    for _ in 0..times {
        *answered.entry(ask()?).or_default() += 1;
    }
    Ok(answered)
}
