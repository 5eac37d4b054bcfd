//! A foreign process detaches the programs at the socket, or removes their pins, while the agent
//! runs.

use std::fs;
use std::net::{SocketAddrV4, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::pins::{LINKS, MAPS, PINS};
use overlay_tests::{Namespace, Node, wait_until};
use serde_json::Value;

use super::stage::{self, PATIENCE, Stage, ask, ask_peer, connected, service};

/// The programs of a node's sockets, and which of their links are pinned.
const PROGRAMS: [&str; 8] = [
    "ov_connect4",
    "ov_connect6",
    "ov_sendmsg4",
    "ov_sendmsg6",
    "ov_recvmsg4",
    "ov_recvmsg6",
    "ov_getpeername4",
    "ov_getpeername6",
];
const PINNED: usize = 4;
/// The maps that are pinned.
const PINNED_MAPS: [&str; 7] = [
    "ov_services",
    "ov_servers",
    "ov_opted_out",
    "ov_affinity",
    "ov_connected",
    "ov_unconnected",
    "ov_socket_count",
];

/// A node whose agent serves sockets in a control group.
struct ServedNode {
    node: Node,
    group: String,
}

impl ServedNode {
    fn shell(&self, line: &str) -> Result<String> {
        self.node.run(["sh", "-c", line])
    }

    /// Name and id of each program that the group has.
    fn attached(&self) -> Result<Vec<(String, u64)>> {
        let shown = self
            .node
            .json(["bpftool", "-j", "cgroup", "show", &self.group])?;
        let programs = shown.as_array().into_iter().flatten();
        let program = |it: &Value| {
            let name = it["name"].as_str().unwrap_or_default().to_owned();
            (name, it["id"].as_u64().unwrap_or_default())
        };
        Ok(programs.map(program).collect())
    }

    /// Whether every program is attached, and every pin exists.
    fn is_whole(&self) -> bool {
        let names = self.attached().unwrap_or_default();
        let is_attached = |name: &&str| names.iter().any(|(attached, _)| attached == name);
        let links = PROGRAMS.iter().skip(PROGRAMS.len() - PINNED);
        let pins = links.map(|name| format!("{LINKS}/{name}"));
        let mut pins = pins.chain(PINNED_MAPS.iter().map(|name| format!("{MAPS}/{name}")));
        let there = self.node.run(["find", &PINS.to_string(), "-type", "f"]);
        let there = there.unwrap_or_default();
        PROGRAMS.iter().all(is_attached) && pins.all(|pin| there.lines().any(|it| it == pin))
    }

    /// Detaches a program by its link, whichever process holds the link.
    fn detach(&self, name: &str) -> Result<()> {
        let attached = self.attached()?;
        let found = attached.iter().find(|(attached, _)| attached == name);
        let (_, program) = found.with_context(|| format!("{name} is not attached"))?;
        let links = self.node.json(["bpftool", "-j", "link", "show"])?;
        let mut links = links.as_array().into_iter().flatten();
        let link = links.find(|link| link["prog_id"].as_u64() == Some(*program));
        let id = link.and_then(|link| link["id"].as_u64());
        let id = id.with_context(|| format!("no link of {name}"))?;
        self.node
            .run(["bpftool", "link", "detach", "id", &id.to_string()])
            .map(drop)
    }

    /// Number of the agent's messages that it has restarted the programs.
    fn healed(&self) -> Result<usize> {
        let path = self.node.agent_log();
        let log = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let said = log
            .lines()
            .filter(|line| line.contains("at the socket are whole again"));
        Ok(said.count())
    }
}

/// Sockets that are open while the programs are detached, and their servers.
struct Standing {
    place: Namespace,
    connected: (UdpSocket, SocketAddrV4),
    unconnected: (UdpSocket, SocketAddrV4),
}

impl Standing {
    fn of(place: Namespace) -> Result<Self> {
        let connected = connected(&place, service(1))?;
        let connected_to = ask_peer(&connected)?.0;
        let unconnected = stage::socket(&place, "0.0.0.0:0")?;
        let asked = ask(&unconnected, service(1).into())?.0;
        Ok(Self {
            place,
            connected: (connected, connected_to),
            unconnected: (unconnected, asked),
        })
    }

    /// Checks that the sockets keep their servers and see the Service's address, like new ones.
    fn stands(&self) -> Result<()> {
        let address = service(1).into();
        let (socket, server) = &self.connected;
        let answer = ask_peer(socket)?;
        ensure!(answer == (*server, address), "connected: {answer:?}");
        let peer = socket.peer_addr()?;
        ensure!(peer == address, "the socket is told of {peer}");
        let (socket, server) = &self.unconnected;
        for _ in 0..5 {
            let answer = ask(socket, address)?;
            ensure!(answer == (*server, address), "unconnected: {answer:?}");
        }
        let (_, from) = ask_peer(&connected(&self.place, service(1))?)?;
        ensure!(from == address, "a new socket is told of {from}");
        Ok(())
    }
}

#[test]
fn what_is_taken_off_the_sockets_comes_back() -> Result<()> {
    let stage = Stage::up("sock-hurt")?;
    let node = stage.lab.node(1);
    let group = stage.lab.control_group(1).context("a group")?;
    let group = group.display().to_string();
    let served = ServedNode { node, group };
    stage.write_service("web", 1)?;
    stage.write_servers("web", &stage.both().map(|server| (server, true)))?;
    wait_until("programs at the socket", PATIENCE, || served.is_whole())
        .with_context(|| served.node.agent_log_tail())?;
    let standing = Standing::of(stage.lab.pod(1, 1).namespace())?;
    standing.stands().context("at first")?;

    let unpin = |path: String| served.shell(&format!("rm -r {path}")).map(drop);
    let hurts: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("every pin is removed", &|| unpin(PINS.to_string())),
        ("a map's pin is removed", &|| {
            unpin(format!("{MAPS}/ov_unconnected"))
        }),
        ("a link's pin is removed", &|| {
            unpin(format!("{LINKS}/ov_recvmsg4"))
        }),
        ("a pin is another map's", &|| {
            let (pin, other) = (format!("{MAPS}/ov_affinity"), format!("{MAPS}/ov_servers"));
            let line = format!("rm {pin} && bpftool map pin pinned {other} {pin}");
            served.shell(&line).map(drop)
        }),
        ("a pinned link is detached", &|| {
            served.detach("ov_getpeername4")
        }),
        ("the agent's link is detached", &|| {
            served.detach("ov_connect4")
        }),
    ];
    for (what, hurt) in hurts {
        let before = served.healed()?;
        hurt().context(what)?;
        wait_until("the agent to notice", PATIENCE, || {
            served.healed().is_ok_and(|now| now > before) && served.is_whole()
        })
        .with_context(|| format!("{what}: {}", served.node.agent_log_tail()))?;
        standing.stands().context(what)?;
    }
    Ok(())
}
