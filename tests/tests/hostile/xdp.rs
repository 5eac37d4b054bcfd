//! Early refusal by XDP: the NICs with and without it, its attachment and its removal.

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use aya::{Ebpf, EbpfLoader};
use nix::sys::signal::Signal;
use overlay_tests::{Lab, Node, Options, wait_until};
use overlay_user::datapath::object;
use serde_json::Value;

use crate::PATIENCE;

fn status(node: &Node) -> Result<Value> {
    node.json(["overlayctl", "status", "--output", "json"])
}

/// The id of our program on the NIC, as shown by the status.
fn shown(node: &Node) -> Result<Option<u64>> {
    let status = status(node)?;
    let attachments = status["attachments"].as_array().context("no attachments")?;
    let mut on_nic = attachments.iter().filter(|it| it["hook"] == "net_xdp");
    Ok(on_nic
        .next()
        .and_then(|it| it["programs"][0]["id"].as_u64()))
}

/// The id of the native XDP program on a device, as reported by the kernel.
fn on_device(node: &Node, device: &str) -> Result<Option<u64>> {
    let links = node.json(["ip", "-j", "link", "show", "dev", device])?;
    // 1 is native (`XDP_ATTACHED_DRV` of linux/if_link.h).
    let xdp = &links[0]["xdp"];
    ensure!(xdp.is_null() || xdp["mode"] == 1, "not native: {xdp}");
    Ok(xdp["prog"]["id"].as_u64())
}

fn one_node(name: &str) -> Result<Lab> {
    Lab::up(Options {
        nodes: 1,
        ..Options::for_test(name)
    })
}

#[test]
fn xdp_is_adopted_by_the_next_agent_and_goes_with_cleanup() -> Result<()> {
    let lab = one_node("xdp")?;
    let node = lab.node(1);
    // A veth pair would lose its offloads, so the program is not attached by default, and the
    // status has the reason.
    ensure!(
        on_device(&node, "eth0")?.is_none(),
        "XDP on a veth by itself"
    );
    let answer = node.http_get("/readyz")?.body;
    ensure!(
        answer.contains("early refusal: behind the NIC: eth0: native XDP on one end"),
        "{answer}"
    );

    let stop = || node.stop_agent(Signal::SIGKILL);
    stop()?;
    node.start_agent(&["--xdp=on"])?;
    let first = on_device(&node, "eth0")?.context("no XDP program")?;
    ensure!(shown(&node)? == Some(first), "{}", status(&node)?);
    ensure!(
        status(&node)?["early_refusal"] == "by native XDP on eth0",
        "{}",
        status(&node)?
    );

    // The program stays after the agent's death; the next agent replaces it by its own.
    stop()?;
    ensure!(
        on_device(&node, "eth0")? == Some(first),
        "it went with the agent"
    );
    node.start_agent(&["--xdp=on"])?;
    let second = on_device(&node, "eth0")?.context("no XDP program")?;
    ensure!(
        second != first && shown(&node)? == Some(second),
        "{first} then {second}"
    );

    // After a foreign detach the program is attached again within a resync.
    node.run(["rm", &pin(&node)?])?;
    wait_until("XDP again", PATIENCE, || {
        on_device(&node, "eth0").is_ok_and(|id| id.is_some()) && pin(&node).is_ok()
    })?;

    // The program is detached when it is switched off.
    stop()?;
    node.start_agent(&["--xdp=off"])?;
    wait_gone(&node)?;

    stop()?;
    node.start_agent(&["--xdp=on"])?;
    stop()?;
    node.run(["overlayd", "cleanup", "--store=dir:/run/nowhere"])?;
    wait_gone(&node)
}

/// The kernel removes a link with its last pin and descriptor, but some time later
/// (`bpf_link_free()` in a workqueue).
fn wait_gone(node: &Node) -> Result<()> {
    wait_until("XDP to go", PATIENCE, || {
        on_device(node, "eth0").is_ok_and(|id| id.is_none())
    })
}

/// The pin of the link.
fn pin(node: &Node) -> Result<String> {
    let links = node.run(["sh", "-c", "echo /sys/fs/bpf/overlay/v*/links/net_xdp_*"])?;
    let pin = links.trim();
    ensure!(!pin.contains('*'), "no pin");
    Ok(pin.to_owned())
}

#[test]
fn xdp_keeps_off_others_programs() -> Result<()> {
    let lab = one_node("xdp-other")?;
    let node = lab.node(1);
    // A foreign program: ours without tables, so that every packet passes.
    let load = || -> Result<Ebpf> {
        let mut ebpf = EbpfLoader::new().load(object::bytes()?)?;
        let program = ebpf.program_mut("ov_net_xdp").context("no XDP program")?;
        let program: &mut Xdp = program.try_into()?;
        program.load()?;
        program.attach("eth0", XdpMode::Driver)?;
        Ok(ebpf)
    };
    let theirs = node.namespace().inside(load)??;
    let before = on_device(&node, "eth0")?;
    node.stop_agent(Signal::SIGKILL)?;
    node.start_agent(&["--xdp=on"])?;
    ensure!(
        before.is_some() && on_device(&node, "eth0")? == before,
        "another's program went"
    );
    let why = status(&node)?["early_refusal"].to_string();
    ensure!(why.contains("bpf_link_create ov_net_xdp on eth0"), "{why}");
    drop(theirs);
    wait_until("XDP when the other has gone", PATIENCE, || {
        on_device(&node, "eth0").is_ok_and(|id| id.is_some() && id != before)
    })
}
