//! The agent of a node under a load of new connections: it is killed, restarted, switched off and
//! on and removed, while servers are added and removed.

use std::cell::RefCell;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::conversation::{Conversation, Transport};
use overlay_tests::status::status;
use overlay_tests::{Node, Pod, kube_proxy, wait_until};
use overlay_user::datapath::pins::Pins;

use super::load::{ACCEPTED, ECHOED, Load};
use super::stage::{self, PATIENCE, PINS, Stage, ask_peer, connected, service};

/// Connections and a connected socket of datagrams that have to stay in any case, with a server
/// that stays.
pub struct Standing {
    conversations: Vec<Conversation>,
    datagrams: UdpSocket,
    server: SocketAddrV4,
}

impl Standing {
    pub fn of(stage: &Stage, server: SocketAddrV4) -> Result<Self> {
        let place = stage.lab.pod(1, 1).namespace();
        for _ in 0..100 {
            let datagrams = connected(&place, service(ECHOED))?;
            if ask_peer(&datagrams)?.0 == server {
                return Ok(Self {
                    conversations: Vec::new(),
                    datagrams,
                    server,
                });
            }
        }
        anyhow::bail!("{server} is never chosen")
    }

    /// Adds a connection, translated by the programs or by kube-proxy.
    pub fn add(&mut self, stage: &Stage, servers: &[SocketAddrV4]) -> Result<()> {
        let place = stage.lab.pod(1, 1).namespace();
        let waiting = stage.servers(servers);
        for _ in 0..100 {
            let conversation =
                Conversation::open(&place, Transport::Tcp, service(ECHOED), &waiting)?;
            if servers[conversation.answered_by()] == self.server {
                self.conversations.push(conversation);
                return Ok(());
            }
        }
        anyhow::bail!("{} is never chosen", self.server)
    }

    /// Checks that each conversation continues with its server, and that the socket sees the
    /// Service's address.
    pub fn stands(&self) -> Result<()> {
        let answer = self.answer()?;
        let address = service(ECHOED).into();
        ensure!(answer == (self.server, address), "{answer:?}");
        let peer = self.datagrams.peer_addr()?;
        ensure!(peer == address, "the socket is told of {peer}");
        Ok(())
    }

    /// Checks that each conversation continues with its server.
    pub fn is_answered(&self) -> Result<()> {
        let (server, from) = self.answer()?;
        ensure!(server == self.server, "{server} answers, from {from}");
        Ok(())
    }

    fn answer(&self) -> Result<(SocketAddrV4, SocketAddr)> {
        for conversation in &self.conversations {
            conversation.client_speaks()?;
            conversation.server_speaks()?;
        }
        ask_peer(&self.datagrams)
    }
}

/// Number of sockets to which the node's programs have given servers.
pub fn translated(node: &Node) -> Result<u64> {
    let sockets = &status(node)?["services"]["sockets"];
    let of = |operation: &str| {
        sockets[operation]["translated"]
            .as_u64()
            .unwrap_or_default()
    };
    Ok(of("connect") + of("sendmsg"))
}

/// A Service of every server, in the store and with kube-proxy, and the pods that are replaced.
struct Deployment<'s> {
    stage: &'s mut Stage,
    node: Node,
    stays: SocketAddrV4,
    /// The pod that is replaced next.
    goes: (Pod, SocketAddrV4),
}

impl Deployment<'_> {
    /// Writes the servers to the store, each with whether it stays.
    fn publish(&self, servers: &[(SocketAddrV4, bool)]) -> Result<()> {
        self.stage.write_servers("echoed", servers)?;
        let accepting = servers.iter();
        let accepting = accepting.map(|(server, stays)| (stage::accepting(*server), *stays));
        self.stage
            .write_servers("accepted", &accepting.collect::<Vec<_>>())
    }

    /// Writes kube-proxy's rules.
    fn give_to_kube_proxy(&self, servers: &[SocketAddrV4]) -> Result<()> {
        let accepting: Vec<_> = servers.iter().copied().map(stage::accepting).collect();
        let services = [
            stage::by_kube_proxy(ECHOED, servers),
            stage::by_kube_proxy(ACCEPTED, &accepting),
        ];
        kube_proxy::serve(&self.node, "10.244.0.0/16".parse()?, &services)
    }

    fn are_served(&self, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
        wait_until("the agent to follow", PATIENCE, || {
            let services = self.node.json(["overlayctl", "services", "-o", "json"]);
            services.is_ok_and(|shown| {
                let text = shown["services"].to_string();
                text.contains(&self.stays.to_string()) && is_wanted(&text)
            })
        })
        .with_context(|| self.node.agent_log_tail())
    }

    /// A rolling update of one server: a new one is added, the old one gets no new clients any
    /// more, and then it is removed. The agent, if it runs, follows the store; kube-proxy always
    /// does.
    fn roll(&mut self, load: &Load, agent_runs: bool) -> Result<()> {
        let old = self.goes.1;
        let (pod, new) = self.stage.add_server(1)?;
        self.publish(&[(old, true), (self.stays, true), (new, true)])?;
        self.give_to_kube_proxy(&[old, self.stays, new])?;
        if agent_runs {
            self.are_served(|text| text.contains(&new.to_string()))?;
        }
        load.go_on("with a server more")?;
        self.publish(&[(old, false), (self.stays, true), (new, true)])?;
        self.give_to_kube_proxy(&[self.stays, new])?;
        // An answer on the way is lost when its entry is removed, with kube-proxy alone, too.
        load.go_on("with kube-proxy's new rules")?;
        // kube-proxy does the same when a server of datagrams is removed; there may be no such
        // entries.
        let gone = old.ip().to_string();
        let entries = ["conntrack", "-D", "-p", "udp", "--reply-src", &gone];
        self.node.exec(entries)?;
        if agent_runs {
            self.are_served(|text| !text.contains(&old.to_string()))?;
        }
        load.go_on("with a server that is about to end")?;
        let (ended, _) = std::mem::replace(&mut self.goes, (pod, new));
        ended.remove()?;
        self.publish(&[(self.stays, true), (new, true)])?;
        load.go_on("without a server")
    }
}

#[test]
fn the_agent_and_servers_come_and_go_under_load() -> Result<()> {
    let mut stage = Stage::up("sock-load")?;
    let [near, far] = stage.both();
    let (node, client) = (stage.lab.node(1), stage.lab.pod(1, 1).namespace());
    for (name, last) in [("echoed", ECHOED), ("accepted", ACCEPTED)] {
        stage.write_service(name, last)?;
    }
    let goes = (stage.lab.pod(1, 2), near);
    let deployment = Deployment {
        stage: &mut stage,
        node: node.clone(),
        stays: far,
        goes,
    };
    deployment.publish(&[(near, true), (far, true)])?;
    deployment.give_to_kube_proxy(&[near, far])?;
    deployment.are_served(|_| true)?;
    let mut standing = Standing::of(deployment.stage, far)?;
    standing.add(deployment.stage, &[near, far])?;
    let load = Load::of([client, node.namespace()]);
    let (deployment, standing) = (RefCell::new(deployment), RefCell::new(standing));
    let stands = |when: &str| -> Result<()> {
        load.go_on(when)?;
        standing.borrow().stands().with_context(|| when.to_owned())
    };
    // Translation is done by the programs, or by kube-proxy alone.
    let is_translated = |when: &str| {
        let before = translated(&node)?;
        wait_until(&format!("a server {when}"), PATIENCE, || {
            translated(&node).is_ok_and(|now| now > before)
        })
        .with_context(|| node.agent_log_tail())?;
        stands(when)
    };
    let is_not_translated = |when: &str| {
        let before = translated(&node)?;
        stands(when)?;
        let now = translated(&node)?;
        ensure!(before == now, "{when} somebody translates");
        Ok(())
    };
    load.beside(|| {
        is_translated("with the agent")?;
        deployment.borrow_mut().roll(&load, true)?;
        is_translated("after a rolling update")?;
        for round in 0..2 {
            node.stop_agent(Signal::SIGKILL)?;
            is_not_translated("after the agent was killed")?;
            if round == 0 {
                let mut deployment = deployment.borrow_mut();
                let servers = [far, deployment.goes.1];
                standing.borrow_mut().add(deployment.stage, &servers)?;
                deployment.roll(&load, false)?;
            }
            node.start_agent(&[])?;
            is_translated("with the next agent")?;
        }
        node.stop_agent(Signal::SIGTERM)?;
        is_not_translated("between two agents")?;
        node.start_agent(&["--services=off"])?;
        is_not_translated("switched off")?;
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&[])?;
        is_translated("switched on again")?;
        deployment.borrow_mut().roll(&load, true)?;
        is_translated("after another rolling update")?;
        // The packet programs and their maps are removed, and the programs at the socket stay. A
        // connection whose first packet through the stack is its last is invalid for connection
        // tracking.
        load.only_datagrams();
        load.go_on("of datagrams")?;
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&["--fast-path=off"])?;
        is_translated("without a fast path")
    })
    .with_context(|| node.agent_log_tail())
}

/// Ids of the objects that are pinned in a directory, as reported by `bpftool`.
fn pinned(node: &Node, kind: &str, directory: &str) -> Result<Vec<String>> {
    let pins = node.run(["find", directory, "-type", "f"])?;
    let pins = pins.lines().filter(|it| it.contains(&format!("/{kind}s/")));
    let id = |pin: &str| -> Result<String> {
        let shown = node.json(["bpftool", "-j", kind, "show", "pinned", pin])?;
        // One object, or a list with one.
        let shown = shown.get(0).unwrap_or(&shown);
        let id = shown["id"].as_u64();
        Ok(id.with_context(|| format!("{pin}: {shown}"))?.to_string())
    };
    pins.map(id).collect()
}

#[test]
fn cleanup_takes_everything_off_the_sockets() -> Result<()> {
    let stage = Stage::up("sock-clean")?;
    let node = stage.lab.node(1);
    let [_, far] = stage.both();
    stage.write_service("web", 1)?;
    stage.write_servers("web", &[(far, true)])?;
    let group = stage.lab.control_group(1).context("a group")?;
    let group = group.display().to_string();
    // Attached programs, with the hooks that they are attached to.
    let attached = || -> Result<Vec<String>> {
        let shown = node.run(["bpftool", "cgroup", "show", &group])?;
        let words = shown.split_whitespace().filter(|it| it.starts_with("ov_"));
        Ok(words.map(str::to_owned).collect())
    };
    wait_until("programs at the socket", PATIENCE, || {
        attached().is_ok_and(|names| names.len() >= 8)
    })
    .with_context(|| node.agent_log_tail())?;
    node.stop_agent(Signal::SIGTERM)?;
    let left = attached()?;
    ensure!(
        left.len() == 4 && left.iter().all(|it| !it.contains("connect")),
        "what standing sockets need is left: {left:?}"
    );
    let root = Pins::new(PINS).root().display().to_string();
    let (maps, links) = (pinned(&node, "map", &root)?, pinned(&node, "link", &root)?);
    // Before Linux 6.6 (tcx) only the programs at the socket have links.
    ensure!(
        maps.len() > 4 && links.len() >= left.len(),
        "{maps:?} {links:?}"
    );
    let store = format!("--store=dir:{}", stage.lab.store_endpoint());
    node.run(["overlayd", "cleanup", "--iface=eth0", &store])?;
    let left = attached()?;
    ensure!(left.is_empty(), "attached: {left:?}");
    ensure!(node.run(["ls", &root]).is_err(), "pins are left");
    for (kind, ids) in [("map", maps), ("link", links)] {
        for id in ids {
            // The kernel removes the objects a moment after their last name.
            wait_until(&format!("{kind} {id} to go"), PATIENCE, || {
                node.run(["bpftool", kind, "show", "id", &id]).is_err()
            })?;
        }
    }
    Ok(())
}
