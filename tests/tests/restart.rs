//! The first actions of an agent that finds another agent's data path.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::libc::linger;
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use overlay_tests::pins::MAPS;
use overlay_tests::{Lab, Node, Options, Pod, fast_path, kube_proxy, wait_until};
use overlay_user::datapath::object;

/// Longest time from a start to the first change of the kernel's state.
const FIRST: Duration = Duration::from_secs(30);

/// Longest time of a packet between two pods.
const ARRIVAL: Duration = Duration::from_secs(5);

/// Number of entries of a pinned map.
fn entries(node: &Node, map: &str) -> Result<usize> {
    let pin = format!("{MAPS}/{map}");
    let entries = node.json(["bpftool", "-j", "map", "dump", "pinned", &pin])?;
    Ok(entries.as_array().map_or(0, Vec::len))
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{text}\n"))?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// A peer has left while no agent ran. The first round removes its kernel state; before that the
/// pinned maps must not lead there any more, even where the round cannot complete.
#[test]
fn adopted_maps_never_say_more_than_the_kernel_path_backs() -> Result<()> {
    let lab = Lab::up(Options::for_test("first"))?;
    let (node, gone) = (lab.node(1), lab.node(2));
    ensure!(entries(&node, "ov_peers4")? == 1);
    for node in lab.nodes() {
        node.stop_agent(Signal::SIGKILL)?;
    }
    let key = gone.subnet()?.to_string().replace('/', "-");
    lab.etcdctl(&["del", &format!("/coreos.com/network/subnets/{key}")])?;

    // The round stops at the packet-filter rules, which come after the routes.
    let aside = tempfile::tempdir()?;
    let hold = aside.path().join("hold");
    fs::write(&hold, "")?;
    let iptables = format!(
        "while [ -e {} ]; do sleep 0.05; done\nPATH=${{PATH#*:}} exec iptables \"$@\"",
        hold.display()
    );
    script(&aside.path().join("iptables"), &iptables)?;
    let agent = aside.path().join("agent");
    let overlayd = lab.options().bin_dir.join("overlayd");
    script(
        &agent,
        &format!(
            "PATH={}:$PATH exec {} \"$@\"",
            aside.path().display(),
            overlayd.display()
        ),
    )?;
    node.start_agent_from(&agent, &[])?;
    wait_until("the route to go", FIRST, || {
        node.overlay_routes().is_ok_and(|routes| routes == 0)
    })?;
    let left = (entries(&node, "ov_peers4")?, entries(&node, "ov_vteps4")?);
    let is_held = node.http_get("/readyz")?.status != 200;
    fs::remove_file(&hold)?;
    ensure!(is_held, "the round ended before the look");
    ensure!(
        left == (0, 0),
        "still in the maps: {left:?} peers and VTEPs"
    );
    node.wait_ready(FIRST)?;
    lab.down()
}

/// Programs that are not the agent's own are running, and the status of the node must say so.
#[test]
fn programs_from_a_file_are_told_of() -> Result<()> {
    let lab = Lab::up(Options::for_test("others"))?;
    let node = lab.node(1);
    let aside = tempfile::tempdir()?;
    let file = aside.path().join("overlay.bpf.o");
    fs::write(&file, object::bytes()?)?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[&format!("--programs={}", file.display())])?;
    let note = format!("those of {} (--programs)", file.display());
    let readiness = node.http_get("/readyz")?.body;
    ensure!(readiness.contains(&note), "{readiness}");
    let status = node.json(["overlayctl", "status", "--output=json"])?;
    ensure!(status["foreign_programs"] == note.as_str(), "{status}");

    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])?;
    let status = node.json(["overlayctl", "status", "--output=json"])?;
    ensure!(status["foreign_programs"].is_null(), "{status}");
    lab.down()
}

/// Both ends of a connection on which one message has gone each way.
fn connection(from: &Pod, to: &Pod, port: u16) -> Result<(TcpStream, TcpStream)> {
    let address = SocketAddrV4::new(to.address(), port);
    let listener = to.namespace().inside(|| TcpListener::bind(address))??;
    let client = from.namespace();
    let mut client = client.inside(|| TcpStream::connect_timeout(&address.into(), ARRIVAL))??;
    let (mut server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(ARRIVAL))?;
    }
    client.write_all(b"?")?;
    server.read_exact(&mut [0])?;
    server.write_all(b"!")?;
    client.read_exact(&mut [0])?;
    Ok((client, server))
}

/// Connection tracking has not seen connections that the fast path carried. When the kernel path
/// takes over and the next packet is a connection's last, connection tracking counts this packet as
/// invalid, and kube-proxy's rules drop invalid packets.
#[test]
fn connections_end_after_the_fast_path_has_gone() -> Result<()> {
    let lab = Lab::up(Options::for_test("last"))?;
    let (pod, neighbour, remote) = (lab.pod(1, 1), lab.pod(1, 2), lab.pod(2, 1));
    for node in lab.nodes() {
        fast_path::wait_serving(&node)?;
        kube_proxy::serve(&node, "10.244.0.0/16".parse()?, &[])?;
    }
    let mut open = Vec::new();
    for to in [&neighbour, &remote] {
        let closed = connection(&pod, to, 9001)?;
        let broken = connection(&pod, to, 9002)?;
        open.push((to.name().to_owned(), closed, broken));
    }
    for node in lab.nodes() {
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&["--fast-path=off"])?;
    }
    for (to, (mut client, mut server), (reset, mut told)) in open {
        client.shutdown(std::net::Shutdown::Write)?;
        let end = server.read(&mut [0]);
        let end = end.with_context(|| format!("{to} does not hear that its client is done"))?;
        ensure!(end == 0, "{to} hears something else");
        server.write_all(b"!")?;
        drop(server);
        let mut last = Vec::new();
        client
            .read_to_end(&mut last)
            .context("the answer, and its end")?;
        ensure!(last == b"!", "{to} answers {last:?}");

        let at_once = linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&reset, sockopt::Linger, &at_once)?;
        drop(reset);
        let kind = told.read(&mut [0]).map_err(|error| error.kind());
        ensure!(
            kind == Err(ErrorKind::ConnectionReset),
            "{to} is not told that its client has broken off: {kind:?}"
        );
    }
    lab.down()
}
