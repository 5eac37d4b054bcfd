//! Servers are added and removed, and so is the agent.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::conversation::{Conversation, Transport};
use overlay_tests::kube_proxy;
use overlay_user::datapath::pins::Pins;

use super::load::{ACCEPTED, Load};
use super::stage::{self, PINS, Stage, ask, ask_peer, connected, service, table};

/// Whether a socket gets an error because its server does not serve any more.
fn is_told(socket: &std::net::UdpSocket) -> bool {
    ask_peer(socket).is_err_and(|error| stage::is_told(&error))
}

#[test]
fn who_talks_to_a_server_that_goes() -> Result<()> {
    let stage = Stage::up("sock-gone")?;
    let place = stage.lab.pod(1, 1).namespace();
    let [near, far] = stage.both();
    let address = service(1);
    let mut serving = stage.serve(1, &table([(1, &[far][..], None)]))?;
    let told = connected(&place, address)?;
    let direct = connected(&place, far)?;
    let unconnected = stage::socket(&place, "0.0.0.0:0")?;
    let of_v6 = stage::socket(&place, "[::]:0")?;
    let to_v6 = SocketAddr::from((address.ip().to_ipv6_mapped(), address.port()));
    let servers = stage.servers(&[far]);
    let connection = Conversation::open(&place, Transport::Tcp, address, &servers)?;
    for (socket, to) in [(&unconnected, address.into()), (&of_v6, to_v6)] {
        ensure!(ask(socket, to)?.0 == far);
    }
    ensure!(ask_peer(&told)?.0 == far && ask_peer(&direct)?.0 == far);

    // A server is added: all sockets keep theirs.
    serving.update(&table([(1, &[near, far][..], None)]))?;
    for _ in 0..10 {
        ensure!(ask(&unconnected, address.into())? == (far, address.into()));
        ensure!(ask_peer(&told)? == (far, address.into()));
    }

    // The server is removed. An unconnected socket gets another one at once, and a connected socket
    // gets an error. A socket that connected to the server directly and not by the Service
    // continues, and so do connections.
    serving.update(&table([(1, &[near][..], None)]))?;
    ensure!(ask(&unconnected, address.into())? == (near, address.into()));
    ensure!(ask(&of_v6, to_v6)? == (near, to_v6));
    ensure!(
        serving.is_telling_after_a_look()? != Some(false),
        "a socket that has to be told is not found"
    );
    ensure!(is_told(&told), "not told");
    ensure!(ask_peer(&direct)? == (far, far.into()));
    connection.client_speaks()?;
    connection.server_speaks()?;
    // After another connect the socket gets another server.
    told.connect(address)?;
    ensure!(ask_peer(&told)? == (near, address.into()));

    // No socket is left to be notified, and packets cost no more than before.
    ensure!(
        serving.is_telling_after_a_look()? != Some(true),
        "packets' sockets are asked for nothing"
    );

    // An agent that starts later notifies sockets from its predecessor's time.
    drop(serving);
    ensure!(
        ask_peer(&told)? == (near, address.into()),
        "without an agent"
    );
    let serving = stage.serve(1, &table([(1, &[far][..], None)]))?;
    ensure!(is_told(&told), "not told by the next agent");
    drop(serving);

    // The Service is removed.
    let mut serving = stage.serve(1, &table([(1, &[far][..], None)]))?;
    let told = connected(&place, address)?;
    ensure!(ask_peer(&told)?.0 == far);
    serving.update(&table([]))?;
    ensure!(is_told(&told), "not told that the Service has gone");
    Ok(())
}

#[test]
fn going_on_and_off_fails_nobody() -> Result<()> {
    let stage = Stage::up("sock-switch")?;
    let node = stage.lab.node(1);
    let place = stage.lab.pod(1, 1).namespace();
    let [_, far] = stage.both();
    let accepting = stage::accepting(far);
    let by_kube_proxy = [(1, far), (ACCEPTED, accepting)];
    let by_kube_proxy = by_kube_proxy.map(|(last, server)| stage::by_kube_proxy(last, &[server]));
    kube_proxy::serve(&node, "10.244.0.0/16".parse()?, &by_kube_proxy)?;
    let wanted = table([(1, &[far][..], None), (ACCEPTED, &[accepting][..], None)]);
    let serving = stage.serve(1, &wanted)?;
    let servers = stage.servers(&[far]);
    let connection = Conversation::open(&place, Transport::Tcp, service(1), &servers)?;
    let datagrams = connected(&place, service(1))?;
    ask_peer(&datagrams)?;
    drop(serving);

    let load = Load::of([place.clone(), node.namespace()]);
    let stands = |when: &str| -> Result<()> {
        connection
            .client_speaks()
            .with_context(|| when.to_owned())?;
        connection
            .server_speaks()
            .with_context(|| when.to_owned())?;
        let answer = ask_peer(&datagrams).with_context(|| when.to_owned())?;
        ensure!(answer == (far, service(1).into()), "{when}: {answer:?}");
        ensure!(datagrams.peer_addr()? == service(1).into(), "{when}");
        load.go_on(when)
    };
    load.beside(|| {
        (0..5).try_for_each(|_| -> Result<()> {
            let served = stage.serve(1, &wanted)?;
            stands("with the programs")?;
            let translated = served.counters()?.get(&("connect", "translated")).copied();
            ensure!(translated > Some(0), "nothing is translated");
            drop(served);
            stands("without them")
        })
    })?;

    // Only the maps that connected sockets need are left.
    let links = Pins::new(PINS).links().display().to_string();
    let links = node.run(["ls", &links])?;
    ensure!(
        links.contains("ov_getpeername4") && !links.contains("ov_connect4"),
        "{links}"
    );
    Ok(())
}
