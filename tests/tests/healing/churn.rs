//! Pods and nodes that are added and removed, with and without the agent.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_common::schema::POD_KERNEL_PATH;
use overlay_tests::pace::Traffic;
use overlay_tests::traffic;
use overlay_tests::{Lab, Node, Options, Pod, fast_path, wait_until};
use serde_json::{Value, json};

use crate::kernel_state::kernel_state;
use crate::{MAPS, SOON, dump, endpoint, lab, shell};
use overlay_tests::pins::LINKS;

/// The entry of an address in the pinned map `ov_pods4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InMap {
    Absent,
    /// Known as a pod, and left to the kernel path.
    KernelPath,
    Accelerated,
}

fn in_map(node: &Node, address: Ipv4Addr) -> Result<InMap> {
    let byte = |value: &u8| json!(format!("0x{value:02x}"));
    let key: Vec<Value> = address.octets().iter().map(byte).collect();
    let map = format!("{MAPS}/ov_pods4");
    let entries = node.json(["bpftool", "-j", "map", "dump", "pinned", &map])?;
    let entries = entries.as_array().context("a list of entries")?;
    let Some(entry) = entries.iter().find(|entry| entry["key"] == json!(key)) else {
        return Ok(InMap::Absent);
    };
    let flags = &entry["formatted"]["value"]["flags"];
    let flags = flags.as_u64().with_context(|| entry.to_string())?;
    Ok(if flags & u64::from(POD_KERNEL_PATH) == 0 {
        InMap::Accelerated
    } else {
        InMap::KernelPath
    })
}

fn is_accelerated(node: &Node, address: Ipv4Addr) -> bool {
    in_map(node, address).is_ok_and(|found| found == InMap::Accelerated)
}

#[test]
fn pods_come_and_go_without_the_agent() -> Result<()> {
    let lab = lab(Options::for_test("pods"))?;
    let node = lab.node(1);
    let far = endpoint(&lab.pod(2, 1));

    node.stop_agent(Signal::SIGKILL)?;
    let pod = lab.add_pod(1)?;
    let near = endpoint(&pod);
    traffic::tcp(&near, &far, 100_000).context("a pod made while the agent is down")?;
    traffic::tcp(&far, &near, 100_000).context("to a pod made while the agent is down")?;
    let found = in_map(&node, pod.address())?;
    ensure!(found == InMap::KernelPath, "without an agent: {found:?}");
    node.start_agent(&[])?;
    wait_until("the pod to be accelerated", SOON, || {
        is_accelerated(&node, pod.address())
    })?;
    traffic::tcp(&near, &far, 100_000)?;

    node.stop_agent(Signal::SIGKILL)?;
    let gone = pod.address();
    pod.remove()?;
    ensure!(
        in_map(&node, gone)? == InMap::Absent,
        "DEL leaves an entry that points at no device"
    );
    // Addresses are given out in turn; this one is given out again when all others have been used.
    let again = reuse(&lab, gone)?;
    traffic::tcp(&far, &endpoint(&again), 100_000)
        .context("to a pod with the address of a deleted one")?;

    // A namespace that is deleted without DEL takes the device along; the entry stays, because no
    // agent runs.
    node.start_agent(&[])?;
    wait_until("the pod to be accelerated", SOON, || {
        is_accelerated(&node, gone)
    })?;
    node.stop_agent(Signal::SIGKILL)?;
    let host_end = again.host_interface()?;
    node.run(["ip", "link", "delete", &host_end])?;
    ensure!(
        in_map(&node, gone)? != InMap::Absent,
        "the entry went by itself"
    );
    again.remove()?;
    let again = reuse(&lab, gone)?;
    traffic::tcp(&far, &endpoint(&again), 100_000)
        .context("to a pod with the address of a lost one")?;
    node.start_agent(&[])?;
    wait_until("the pod to be accelerated", SOON, || {
        is_accelerated(&node, gone)
    })?;
    traffic::tcp(&far, &endpoint(&again), 100_000)?;
    again.remove()?;

    // Churn during running traffic.
    let running = Traffic::start(&endpoint(&lab.pod(1, 1)), &far)?;
    for _ in 0..10 {
        let pods = [lab.add_pod(1)?, lab.add_pod(1)?, lab.add_pod(2)?];
        traffic::tcp(&endpoint(&pods[0]), &endpoint(&pods[2]), 10_000)?;
        traffic::tcp(&endpoint(&pods[1]), &endpoint(&pods[0]), 10_000)?;
        for pod in pods {
            pod.remove()?;
        }
    }
    let outcome = running.finish()?;
    println!("churn of pods: {outcome}");
    ensure!(outcome.lost() == 0, "{outcome}");
    let left = node.pods().len();
    for map in ["ov_pods4", "ov_endpoints4"] {
        wait_until(&format!("{left} entries in {map}"), SOON, || {
            dump(&node, map).is_ok_and(|entries| entries.len() == left)
        })?;
    }
    let links = node.run(["ls", &LINKS.to_string()])?;
    // Filters have no links, and are deleted with their devices.
    let pinned = if fast_path::has_tcx(&node)? {
        2 + 2 * left
    } else {
        0
    };
    ensure!(
        links.lines().count() == pinned,
        "links of gone pods are left:\n{links}"
    );
    lab.down()
}

/// Adds a pod on node 1 that gets `address`, by changing the IPAM's note of the last address.
fn reuse(lab: &Lab, address: Ipv4Addr) -> Result<Pod> {
    let [a, b, c, d] = address.octets();
    let before = Ipv4Addr::new(a, b, c, d - 1);
    shell(
        &lab.node(1),
        &format!("printf %s {before} > /var/lib/cni/networks/cbr0/last_reserved_ip.0"),
    )?;
    let pod = lab.add_pod(1)?;
    ensure!(
        pod.address() == address,
        "got {} instead of {address}",
        pod.address()
    );
    Ok(pod)
}

#[test]
fn nodes_come_and_go() -> Result<()> {
    let lab = lab(Options {
        nodes: 3,
        pods: 1,
        ..Options::for_test("nodes")
    })?;
    let [one, two, three] = [1, 2, 3].map(|number| lab.node(number));
    let known = |node: &Node, peers: usize| -> bool {
        node.overlay_routes().is_ok_and(|routes| routes == peers)
            && ["ov_peers4", "ov_vteps4"]
                .iter()
                .all(|map| dump(node, map).is_ok_and(|entries| entries.len() == peers))
    };
    let subnet = two.subnet()?;
    two.stop_agent(Signal::SIGTERM)?;
    let running = Traffic::start(&endpoint(&lab.pod(1, 1)), &endpoint(&lab.pod(3, 1)))?;
    lab.etcdctl(&[
        "del",
        "--prefix",
        &format!(
            "/coreos.com/network/subnets/{}",
            subnet.to_string().replace('/', "-")
        ),
    ])?;
    for node in [&one, &three] {
        wait_until(&format!("{} to forget a node", node.name()), SOON, || {
            known(node, 1)
        })?;
    }
    let state = kernel_state(&one)?;
    ensure!(
        !state.contains(&subnet.addr().to_string()),
        "something of {subnet} is left:\n{state}"
    );

    // The node returns with another address, and with its former pods.
    shell(
        &two,
        "ip address del 192.168.66.2/24 dev eth0; ip address add 192.168.66.102/24 dev eth0; ip \
        route add default via 192.168.66.253",
    )?;
    two.start_agent(&[])?;
    ensure!(two.subnet()? == subnet, "{subnet} became {}", two.subnet()?);
    for node in [&one, &two, &three] {
        wait_until(&format!("{} to know two nodes", node.name()), SOON, || {
            known(node, 2)
        })?;
    }
    let fdb = shell(&one, "bridge fdb show dev flannel.1")?;
    ensure!(
        fdb.contains("dst 192.168.66.102") && !fdb.contains("dst 192.168.66.2 "),
        "{fdb}"
    );
    let outcome = running.finish()?;
    println!("a node left and came back, traffic of two others: {outcome}");
    ensure!(outcome.lost() == 0, "{outcome}");
    traffic::tcp(
        &endpoint(&lab.pod(1, 1)),
        &endpoint(&lab.pod(2, 1)),
        100_000,
    )?;
    traffic::tcp(
        &endpoint(&lab.pod(2, 1)),
        &endpoint(&lab.pod(3, 1)),
        100_000,
    )?;
    lab.down()
}
