//! Super-packets from pod to pod.

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::sockopt::{UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{MsgFlags, SockaddrIn, sendmsg, setsockopt};
use nix::unistd::Pid;
use overlay_tests::fast_path::packets;
use overlay_tests::traffic::{PATIENCE, pattern, tcp};
use overlay_tests::{Pod, reach};

use crate::support::{Flow, Longest, STREAM, UNDERLAY_FRAME, carried, ethtool, lab, watch};

/// Longest ordinary frame of the lab's pods.
const POD_FRAME: usize = 1464;
/// A length far above that of any ordinary frame.
const SUPER_PACKET: usize = 10_000;

#[test]
fn super_packets_stay_whole_and_tcp_arrives_intact() -> Result<()> {
    let lab = lab("gso")?;
    let (sender, receiver) = (lab.pod(1, 1), lab.pod(2, 1));
    let (from, to) = (reach::of_pod(&sender), reach::of_pod(&receiver));
    let stream = |what: &str| -> Result<Longest> {
        let before = carried(&lab)?;
        let (_, longest) =
            watch(&lab, || tcp(&from, &to, STREAM)).with_context(|| format!("TCP, {what}"))?;
        let after = carried(&lab)?;
        ensure!(
            after.0 > before.0 + 40 && after.1 > before.1 + 40,
            "{what}: the fast path carried {before:?}, then {after:?} packets"
        );
        Ok(longest)
    };

    let longest = stream("everything left to the devices")?;
    ensure!(
        longest.wire > SUPER_PACKET && longest.receiver > SUPER_PACKET,
        "super-packets were cut: {longest:?}"
    );

    // The pod segments received packets only when it forwards them; answers are packets of its own.
    ethtool(&receiver.namespace(), "eth0", "tso off gso off gro off")?;
    stream("no offload in the receiving pod")?;
    ethtool(&receiver.namespace(), "eth0", "tso on gso on gro on")?;
    stream("GRO in the receiving pod")?;

    ethtool(&sender.namespace(), "eth0", "tso off gso off")?;
    let longest = stream("no segmentation offload in the sending pod")?;
    ensure!(
        longest.wire <= UNDERLAY_FRAME && longest.receiver <= POD_FRAME,
        "ordinary packets grew: {longest:?}"
    );
    // A veth passes its packets to GRO where its peer, here the switch's port, does not segment.
    ethtool(&lab.namespace("underlay")?, "n2", "tso off gso off")?;
    ethtool(&lab.node(2).namespace(), "eth0", "gro on")?;
    // Packets arrive one by one here; these settings make GRO wait for more, as with a busy device.
    for setting in ["gro_flush_timeout", "napi_defer_hard_irqs"] {
        let command = format!("echo 500000 >/sys/class/net/eth0/{setting}");
        lab.node(2).run(["sh", "-c", &command])?;
    }
    let longest = stream("GRO at the receiving node's device")?;
    ensure!(
        longest.wire <= UNDERLAY_FRAME && longest.receiver > 2 * POD_FRAME,
        "GRO did not put segments together, or they were cut: {longest:?}"
    );
    ethtool(&receiver.namespace(), "eth0", "tx off rx off")?;
    ethtool(&sender.namespace(), "eth0", "tx off rx off")?;
    stream("no checksum offload in either pod").map(drop)
}

#[test]
fn what_the_stack_sends_is_segmented_like_what_pods_send() -> Result<()> {
    let lab = lab("stackgso")?;
    let node = lab.node(1);
    let (from, to) = (reach::of_node(&node), reach::of_pod(&lab.pod(2, 1)));
    let stream = |what: &str| -> Result<Longest> {
        let encapsulated = || packets(&node, "vtep_out", "encapsulated_for_stack");
        let before = encapsulated()?;
        let (_, longest) =
            watch(&lab, || tcp(&from, &to, STREAM)).with_context(|| format!("TCP, {what}"))?;
        let count = encapsulated()? - before;
        ensure!(count > 40, "{what}: {count} packets encapsulated");
        Ok(longest)
    };
    let longest = stream("everything left to the devices")?;
    ensure!(longest.wire > SUPER_PACKET, "cut: {longest:?}");
    ethtool(
        &node.namespace(),
        "eth0",
        "tx-udp_tnl-segmentation off tso off gso off",
    )?;
    let longest = stream("no segmentation offload at the NIC")?;
    ensure!(longest.wire > POD_FRAME, "nothing was sent: {longest:?}");
    ethtool(&node.namespace(), "eth0", "tx off")?;
    stream("no checksum offload at the NIC")?;
    ethtool(&node.namespace(), "flannel.1", "tso off gso off tx off")?;
    let longest = stream("nothing left to the VXLAN device")?;
    ensure!(longest.wire <= UNDERLAY_FRAME, "grown: {longest:?}");
    Ok(())
}

/// Sends `payload` as one super-packet of datagrams of `segment` bytes and returns the received
/// ones.
fn udp_segments(from: &Pod, to: &Pod, payload: &[u8], segment: i32, gro: bool) -> Result<Vec<u8>> {
    let bind = |pod: &Pod| {
        let address = SocketAddr::from((pod.address(), 0));
        pod.namespace()
            .inside(|| UdpSocket::bind(address))?
            .context("bind")
    };
    let (server, client) = (bind(to)?, bind(from)?);
    server
        .set_read_timeout(Some(PATIENCE))
        .context("set a timeout")?;
    if gro {
        setsockopt(&server, UdpGroSegment, &true).context("ask for UDP GRO")?;
    }
    setsockopt(&client, UdpGsoSegment, &segment).context("ask for UDP GSO")?;
    let SocketAddr::V4(target) = server.local_addr()? else {
        return Err(anyhow!("an IPv6 address"));
    };
    let bytes = [IoSlice::new(payload)];
    let target = SockaddrIn::from(target);
    sendmsg(
        client.as_raw_fd(),
        &bytes,
        &[],
        MsgFlags::empty(),
        Some(&target),
    )
    .context("send")?;
    let mut arrived = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while arrived.len() < payload.len() {
        let length = server
            .recv(&mut buffer)
            .with_context(|| format!("after {} bytes", arrived.len()))?;
        ensure!(
            gro || length <= segment as usize,
            "a datagram of {length} bytes"
        );
        arrived.extend(&buffer[..length]);
    }
    Ok(arrived)
}

#[test]
fn udp_super_packets_arrive_as_datagrams() -> Result<()> {
    let lab = lab("udpgso")?;
    let (sender, receiver) = (lab.pod(1, 1), lab.pod(2, 1));
    for (segment, count, gro) in [
        (1200, 40, false),
        (1422, 12, false),
        (1200, 40, true),
        (100, 64, false),
    ] {
        let what = format!("{count} datagrams of {segment} bytes, UDP GRO {gro}");
        let payload = pattern(segment * count);
        let before = carried(&lab)?;
        let (arrived, longest) = watch(&lab, || {
            udp_segments(&sender, &receiver, &payload, segment as i32, gro)
        })
        .with_context(|| what.clone())?;
        ensure!(arrived == payload, "{what}: arrived changed");
        let after = carried(&lab)?;
        ensure!(after.0 > before.0, "{what}: the fast path carried nothing");
        ensure!(
            longest.wire > segment * count,
            "{what}: cut before the wire: {longest:?}"
        );
    }
    Ok(())
}

/// One segment in this many may be retransmitted, because an idle machine may probe.
const RETRANSMITTED_AT_MOST: u64 = 1000;

#[test]
fn bulk_is_not_sent_again() -> Result<()> {
    let lab = lab("bulk")?;
    let (sender, receiver) = (lab.pod(1, 1), lab.pod(2, 1));
    let count = |name: &str| -> Result<u64> {
        let text = sender.run(["nstat", "-asz", name])?;
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        let value = value.with_context(|| format!("nstat: {text}"))?;
        value.parse().with_context(|| format!("nstat: {text}"))
    };
    let before = (
        count("TcpOutSegs")?,
        count("TcpRetransSegs")?,
        carried(&lab)?,
    );
    // The sender stays on one processor, because a sender that moves between two causes reordering
    // in their queues, on any path.
    thread::scope(|scope| {
        let work = scope.spawn(|| -> Result<()> {
            let mut one = CpuSet::new();
            one.set(0)?;
            sched_setaffinity(Pid::from_raw(0), &one).context("stay on one processor")?;
            let mut flow = Flow::between(&sender, &receiver)?;
            (0..20).try_for_each(|_| flow.carry(STREAM))
        });
        work.join().map_err(|_| anyhow!("the sender panicked"))?
    })?;
    let after = (
        count("TcpOutSegs")?,
        count("TcpRetransSegs")?,
        carried(&lab)?,
    );
    ensure!(
        after.2.1 > before.2.1 + 500,
        "the fast path did not carry it"
    );
    let (sent, again) = (after.0 - before.0, after.1 - before.1);
    ensure!(
        again * RETRANSMITTED_AT_MOST <= sent,
        "{again} of {sent} segments were sent again"
    );
    Ok(())
}
