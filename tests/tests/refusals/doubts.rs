//! Where the tables cannot distinguish a forgery from missing knowledge, no packet is refused.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::frame::{IPV4, Ip, VXLAN_PORT, ethernet, vxlan};
use overlay_tests::packet::RawSocket;
use overlay_tests::status::wait_for_path;
use overlay_tests::wait_until;

use crate::UNLEASED;
use crate::case::{mark, marked};
use crate::stage::{QUIET, Stage, refused, status};

/// Longest wait for an action of the agent or for the clock.
const SOON: Duration = Duration::from_secs(15);

impl Stage {
    /// Number of packets with a verdict of the programs on the first node.
    fn slow(&self, cause: &str) -> Result<u64> {
        let status = status(&self.lab.node(1))?;
        Ok(status["slow_path"][cause].as_u64().unwrap_or(0))
    }

    fn refused_by_programs(&self, reason: &str) -> Result<u64> {
        let status = status(&self.lab.node(1))?;
        Ok(status["refused"][reason]["fast_path"].as_u64().unwrap_or(0))
    }

    /// A node joins while no agent runs: its packets are refused at first, and left to the kernel
    /// once no agent has kept the list of leases for some time.
    pub(super) fn outlive_the_agent(&self) -> Result<()> {
        let node = self.lab.node(1);
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&["--refuse-without-agent=8s"])?;
        let own = self.own();
        wait_for_path(&node, &own.0.to_string(), "fast")?;
        node.stop_agent(Signal::SIGKILL)?;

        let newcomer = RawSocket::open(&self.lab.namespace("outside")?, "eth0")?;
        let listener = RawSocket::open(&self.lab.pod(1, 1).namespace(), "eth0")?;
        let (to, nic, device) = self.vteps[0];
        let send = |inner: Ipv4Addr, number| -> Result<()> {
            let ip = Ip::udp(inner, own.0, 9, &mark(number)).packet();
            let frame = ethernet(device, self.vteps[1].2, IPV4, &ip);
            let outer = Ipv4Addr::new(192, 168, 66, 253);
            let ip = Ip::udp(outer, to, VXLAN_PORT, &vxlan(1, &frame));
            newcomer.send(&ethernet(nic, self.stranger, IPV4, &ip.packet()))
        };
        send(UNLEASED, 1)?;
        wait_until("a refusal", SOON, || {
            self.refused_by_programs("unknown_vtep")
                .is_ok_and(|packets| packets > 0)
        })?;
        wait_until("the leases to be stale", SOON, || {
            send(UNLEASED, 2).is_ok() && self.slow("stale_leases").is_ok_and(|slow| slow > 0)
        })?;
        // The node knows its own subnet without any list.
        let before = self.refused_by_programs("foreign_inner_source")?;
        send(self.gateways[0], 3)?;
        wait_until("a refusal of the own subnet", SOON, || {
            self.refused_by_programs("foreign_inner_source")
                .is_ok_and(|packets| packets > before)
        })?;
        let arrived = listener.incoming(QUIET, |frame| marked(frame).is_some())?;
        let arrived: Vec<_> = arrived.iter().filter_map(|frame| marked(frame)).collect();
        ensure!(
            arrived.contains(&2),
            "the newcomer is not heard: {arrived:?}"
        );
        ensure!(
            arrived.iter().all(|number| *number == 2),
            "what was refused arrives: {arrived:?}"
        );

        node.start_agent(&[])?;
        let before = refused(&node)?.get("unknown_vtep").copied();
        wait_until("an agent that refuses again", SOON, || {
            send(UNLEASED, 4).is_ok()
                && refused(&node).is_ok_and(|now| now.get("unknown_vtep").copied() > before)
        })
    }

    /// A container with two interfaces answers from the address of one by the other.
    pub(super) fn answer_by_the_other_interface(&self) -> Result<()> {
        let node = self.lab.node(1);
        let (pod, other) = (self.lab.pod(1, 1), self.lab.pod(1, 2));
        let sender = RawSocket::open(&pod.namespace(), "eth0")?;
        let send = || {
            let ip = Ip::udp(other.address(), self.gateways[0], 9, &mark(1)).packet();
            sender.send(&ethernet(self.bridge, self.own().1, IPV4, &ip))
        };
        let forged = self.refused_by_programs("spoofed_source")?;
        send()?;
        wait_until("another container's address to be refused", SOON, || {
            self.refused_by_programs("spoofed_source")
                .is_ok_and(|packets| packets > forged)
        })?;
        // The note has the form of a second attachment of one container.
        let device = other.host_interface()?;
        let shown = node.json(["ip", "-j", "link", "show", "dev", &device])?;
        let note = shown[0]["ifalias"].as_str().context("no note")?;
        let note = note.replace(other.container(), pod.container());
        node.run(["ip", "link", "set", "dev", &device, "alias", &note])?;
        wait_until("the agent to know them for one container", SOON, || {
            send().is_ok() && self.slow("sibling_source").is_ok_and(|slow| slow > 0)
        })
    }
}
