//! Other software on the node: its programs and rules on a pod's veth.

use anyhow::{Context as _, Result, ensure};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use aya::{Ebpf, EbpfLoader};
use nix::sys::signal::Signal;
use overlay_tests::status::{wait_accelerated, wait_for_path};
use overlay_tests::traffic::{self, Endpoint};
use overlay_tests::{Lab, Node, Options};
use overlay_user::datapath::object;

use crate::shell;

/// A foreign program: ours without tables, so that every packet passes. Also returns the program's
/// id.
fn foreign(device: &str) -> Result<(Ebpf, u32)> {
    let mut ebpf = EbpfLoader::new().load(object::bytes()?)?;
    let program = ebpf.program_mut("ov_pod_out").context("no program")?;
    let program: &mut SchedClassifier = program.try_into()?;
    program.load()?;
    // By tcx from Linux 6.6 on, else by clsact.
    program.attach(device, TcAttachType::Ingress)?;
    let id = program.info()?.id();
    Ok((ebpf, id))
}

/// Whether the program with that id is on the device.
fn is_attached(node: &Node, device: &str, id: u32) -> Result<bool> {
    let by_tcx = || SchedClassifier::query_tcx(device, TcAttachType::Ingress);
    if let Ok((_, programs)) = node.namespace().inside(by_tcx)? {
        return Ok(programs.iter().any(|program| program.id() == id));
    }
    let filters = shell(node, &format!("tc filter show dev {device} ingress"))?;
    Ok(filters.contains(&format!(" id {id} ")))
}

fn talk(lab: &Lab) -> Result<()> {
    let [a, b, c] = [(1, 1), (1, 2), (2, 1)].map(|(node, pod)| Endpoint::from(&lab.pod(node, pod)));
    for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&c, &a)] {
        traffic::tcp(from, to, 50_000).with_context(|| format!("{} to {}", from.name, to.name))?;
    }
    Ok(())
}

#[test]
fn a_foreign_program_on_a_pods_veth_has_its_say() -> Result<()> {
    let lab = Lab::up(Options::for_test("company"))?;
    wait_accelerated(&lab)?;
    let (node, pod) = (lab.node(1), lab.pod(1, 1));
    let (address, device) = (pod.address().to_string(), pod.host_interface()?);
    let (theirs, id) = node.namespace().inside(|| foreign(&device))??;
    wait_for_path(&node, &address, "kernel")?;
    talk(&lab)?;
    // A new agent does not remove the program, either.
    node.stop_agent(Signal::SIGKILL)?;
    node.start_agent(&[])?;
    wait_for_path(&node, &address, "kernel")?;
    wait_for_path(&node, &lab.pod(1, 2).address().to_string(), "fast")?;
    talk(&lab)?;
    ensure!(is_attached(&node, &device, id)?, "it is gone");
    // A filter of clsact is removed in the namespace of the thread that drops its owner.
    node.namespace().inside(|| drop(theirs))?;
    wait_for_path(&node, &address, "fast")?;
    talk(&lab)?;
    lab.down()
}

/// Rules that name a pod's veth, in every table that can.
#[test]
fn foreign_rules_about_a_pods_veth_stay() -> Result<()> {
    let lab = Lab::up(Options::for_test("rules"))?;
    wait_accelerated(&lab)?;
    let (node, device) = (lab.node(1), lab.pod(1, 1).host_interface()?);
    shell(
        &node,
        &format!(
            "set -e
             iptables -I FORWARD -m physdev --physdev-in {device} -j ACCEPT
             iptables -t raw -I PREROUTING -i {device} -j ACCEPT
             nft add table netdev theirs
             nft 'add chain netdev theirs pod {{ type filter hook ingress device {device} priority \
             0; }}'
             nft add rule netdev theirs pod counter accept"
        ),
    )?;
    // The rules without counters, because the foreign rule counts.
    let rules = || {
        shell(
            &node,
            &format!("iptables-save | grep {device}; nft -s list table netdev theirs"),
        )
    };
    let before = rules()?;
    ensure!(before.matches(&device).count() >= 3, "{before}");
    talk(&lab)?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])?;
    wait_accelerated(&lab)?;
    talk(&lab)?;
    node.stop_agent(Signal::SIGTERM)?;
    let endpoints = format!("--etcd-endpoints={}", lab.store_endpoint());
    node.run(["overlayd", "cleanup", "--iface=eth0", &endpoints])?;
    let after = rules()?;
    ensure!(after == before, "{before}\nbecame\n{after}");
    lab.down()
}
