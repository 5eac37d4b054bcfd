//! Pods whose Services are left to kube-proxy.

use std::io::Read as _;
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::status::status;
use overlay_tests::{Namespace, command, kube_proxy, wait_until};
use serde_json::{Value, json};

use super::stage::{self, PATIENCE, Stage, ask, ask_peer, connected, service};

/// The capability by which a runtime passes a pod's annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// The port at which a mesh's proxy accepts the pod's connections.
const PROXY: u16 = 15001;

/// A pod of the first node with annotations.
fn pod(stage: &Stage, name: &str, annotations: &Value) -> Result<Namespace> {
    let lab = &stage.lab;
    let place = lab.add_namespace(name)?.in_group(lab.control_group(1));
    let path = place.path();
    let extra = [("runtimeConfig", json!({ANNOTATIONS: annotations}))];
    let output = lab.node(1).cni("ADD", Some((name, &path)), &extra)?;
    command::require_success("CNI ADD", output)?;
    Ok(place)
}

/// The servers that answer an unconnected and a connected socket.
fn answered_by(place: &Namespace) -> Result<[SocketAddrV4; 2]> {
    let unconnected = stage::socket(place, "0.0.0.0:0")?;
    let connected = connected(place, service(1))?;
    for socket in [&unconnected, &connected] {
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    }
    let answers = [ask(&unconnected, service(1).into())?, ask_peer(&connected)?];
    for (_, from) in answers {
        ensure!(from == service(1).into(), "the answer is from {from}");
    }
    Ok(answers.map(|(server, _)| server))
}

#[test]
fn who_opts_out_is_left_to_kube_proxy() -> Result<()> {
    let stage = Stage::up("sock-out")?;
    let node = stage.lab.node(1);
    let [near, far] = stage.both();
    // The answer shows whether kube-proxy or the programs chose the server.
    let by_kube_proxy = stage::by_kube_proxy(1, &[near]);
    kube_proxy::serve(&node, "10.244.0.0/16".parse()?, &[by_kube_proxy])?;
    stage.write_service("web", 1)?;
    stage.write_servers("web", &[(far, true)])?;
    let plain = stage.lab.pod(1, 1).namespace();
    let is_answered = |place: &Namespace, by: SocketAddrV4| {
        wait_until(&format!("{by} to answer"), PATIENCE, || {
            answered_by(place).is_ok_and(|servers| servers == [by; 2])
        })
        .with_context(|| format!("{}; {}", place.name(), node.agent_log_tail()))
    };
    is_answered(&plain, far)?;
    let pods = [
        ("asks", json!({"overlay.io/services": "kube-proxy"}), near),
        ("meshed", json!({"sidecar.istio.io/status": "{}"}), near),
        (
            "overrules",
            json!({"sidecar.istio.io/status": "{}", "overlay.io/services": "socket"}),
            far,
        ),
    ];
    let mut places = Vec::new();
    for (name, annotations, by) in &pods {
        let place = pod(&stage, name, annotations)?;
        is_answered(&place, *by)?;
        places.push((place, *by));
    }
    // The next agent knows these pods before it serves any socket.
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])?;
    is_answered(&plain, far)?;
    for (place, by) in &places {
        let servers = answered_by(place)?;
        ensure!(servers == [*by; 2], "{}: {servers:?} answer", place.name());
    }
    let counted = status(&node)?["services"]["sockets"].clone();
    for operation in ["connect", "sendmsg"] {
        let times = counted[operation]["opted_out"].as_u64();
        ensure!(times > Some(0), "{operation}: {counted}");
    }

    // The mesh's proxy gets the pod's packets to the Service's address, because of its rules.
    let (meshed, _) = &places[1];
    let (to, proxy) = (service(1).ip().to_string(), PROXY.to_string());
    let rule = [
        "-p",
        "tcp",
        "-d",
        &to,
        "-j",
        "REDIRECT",
        "--to-ports",
        &proxy,
    ];
    let add = ["iptables", "-t", "nat", "-A", "OUTPUT"];
    meshed.run(add.into_iter().chain(rule))?;
    let listener = meshed.inside(|| TcpListener::bind(("127.0.0.1", PROXY)))??;
    let stream = meshed.inside(|| TcpStream::connect_timeout(&service(1).into(), PATIENCE))?;
    let mut stream = stream.context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    drop(listener.accept().context("nothing reaches the proxy")?);
    ensure!(stream.read(&mut [0])? == 0, "who speaks?");
    Ok(())
}
