//! Super-packets, checksums left to the device, and the path's MTU: what the stack leaves for later still comes
//! out right behind the fast path.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::sockopt::{IpMtu, TcpMaxSeg, UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{MsgFlags, SockaddrIn, getsockopt, sendmsg, setsockopt};
use nix::unistd::Pid;
use overlay_tests::fast_path::{packets, wait_serving};
use overlay_tests::packet::{Frame, RawSocket};
use overlay_tests::traffic::{PATIENCE, pattern, tcp};
use overlay_tests::{Lab, Namespace, Node, Options, Pod, reach, wait_until};

/// Bytes of a stream: many windows.
const STREAM: usize = 3_000_000;
/// The longest ordinary frame of the lab's underlay, and of the pods.
const UNDERLAY_FRAME: usize = 1514;
const POD_FRAME: usize = 1464;
/// Longer than any ordinary frame by far.
const SUPER_PACKET: usize = 10_000;
const QUIET: Duration = Duration::from_millis(100);
/// How soon the agent has to follow what changes in the kernel.
const FOLLOWED: Duration = Duration::from_secs(2);

/// The longest frames that were seen leaving the sender's node and reaching the receiver.
#[derive(Debug)]
struct Longest {
    wire: usize,
    receiver: usize,
}

/// Watches the wire and the receiving pod while `work` is done.
fn watch<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> Result<(T, Longest)> {
    let wire = RawSocket::open(&lab.node(1).namespace(), "eth0")?;
    let receiver = RawSocket::open(&lab.pod(2, 1).namespace(), "eth0")?;
    let answer = work()?;
    let longest = |socket: &RawSocket, wanted: fn(&Frame) -> bool| -> Result<usize> {
        let frames = socket.drain(QUIET)?;
        let lengths = frames.iter().filter(|frame| wanted(frame));
        Ok(lengths.map(|frame| frame.bytes.len()).max().unwrap_or(0))
    };
    let longest = Longest {
        wire: longest(&wire, |frame| frame.outgoing)?,
        receiver: longest(&receiver, |frame| !frame.outgoing)?,
    };
    Ok((answer, longest))
}

/// A lab in which every pod is on the fast path.
fn lab(name: &str) -> Result<Lab> {
    let lab = Lab::up(Options::for_test(name))?;
    lab.nodes().iter().try_for_each(wait_serving)?;
    Ok(lab)
}

/// Packets that the fast path carried from the first node's pods to the second's.
fn carried(lab: &Lab) -> Result<(u64, u64)> {
    Ok((
        packets(&lab.node(1), "pod_in", "encapsulated")?,
        packets(&lab.node(2), "net_in", "decapsulated")?,
    ))
}

fn ethtool(namespace: &Namespace, device: &str, features: &str) -> Result<()> {
    let line = format!("ethtool -K {device} {features}");
    namespace.run(line.split(' ')).map(drop)
}

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

    // The pod cuts what it receives into pieces again only where it sends it on; answers are its own.
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
    // A veth gives its packets to GRO where its peer, here the switch's port, does not segment.
    ethtool(&lab.namespace("underlay")?, "n2", "tso off gso off")?;
    ethtool(&lab.node(2).namespace(), "eth0", "gro on")?;
    // Packets come one by one here; GRO waits for more as it would with a busy device.
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

/// Sends `payload` as one super-packet of datagrams of `segment` bytes and returns what arrives.
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

#[test]
fn a_pod_that_forwards_cuts_super_packets_right() -> Result<()> {
    let lab = lab("forward")?;
    let (sender, router, behind) = (lab.pod(1, 1), lab.pod(2, 1), lab.pod(2, 2));
    let behind_name = behind.namespace().name().to_owned();
    let cable = format!("ip link add inner type veth peer name inner netns {behind_name}");
    router.run(cable.split(' '))?;
    for (pod, address) in [(&router, "172.31.9.1/30"), (&behind, "172.31.9.2/30")] {
        pod.run(["ip", "address", "add", address, "dev", "inner"])?;
        pod.run(["ip", "link", "set", "inner", "mtu", "1450", "up"])?;
    }
    let back = lab.node(1).subnet()?.to_string();
    behind.run(["ip", "route", "add", &back, "via", "172.31.9.1"])?;
    router.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    let translate =
        "iptables -w -t nat -A PREROUTING -d ADDRESS -j DNAT --to-destination 172.31.9.2";
    let translate = translate.replace("ADDRESS", &router.address().to_string());
    router.run(translate.split(' '))?;

    let listen = SocketAddr::from((Ipv4Addr::new(172, 31, 9, 2), 0));
    for offloads in [
        "tso on gso on",
        "tso off gso off",
        "tso off gso off tx off sg off",
    ] {
        ethtool(&router.namespace(), "inner", offloads)?;
        let before = carried(&lab)?;
        let listener = behind.namespace().inside(|| TcpListener::bind(listen))??;
        let target = SocketAddr::from((router.address(), listener.local_addr()?.port()));
        let client = sender
            .namespace()
            .inside(|| TcpStream::connect_timeout(&target, PATIENCE))?
            .with_context(|| format!("connect, {offloads}"))?;
        let mut flow = Flow::new(client, listener.accept()?.0)?;
        flow.carry(STREAM)
            .with_context(|| format!("TCP, {offloads}"))?;
        let after = carried(&lab)?;
        ensure!(
            after.1 > before.1 + 20,
            "{offloads}: the fast path carried {before:?}, then {after:?} packets"
        );
    }
    Ok(())
}

#[test]
fn a_pod_that_forwards_into_the_overlay_loses_nothing() -> Result<()> {
    let lab = lab("relay")?;
    let (sender, relay) = (lab.pod(1, 1), lab.pod(2, 1));
    relay.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    relay.run("iptables -w -t nat -A POSTROUTING -j MASQUERADE".split(' '))?;
    for target in [lab.pod(1, 2), lab.pod(2, 2)] {
        let (here, there) = (relay.address(), target.address());
        relay.run(["iptables", "-w", "-t", "nat", "-F", "PREROUTING"])?;
        let line =
            format!("iptables -w -t nat -A PREROUTING -d {here} -j DNAT --to-destination {there}");
        relay.run(line.split(' '))?;
        let before = carried(&lab)?;
        let listener = target
            .namespace()
            .inside(|| TcpListener::bind((there, 0)))??;
        let address = SocketAddr::from((here, listener.local_addr()?.port()));
        let client = sender
            .namespace()
            .inside(|| TcpStream::connect_timeout(&address, PATIENCE))?
            .with_context(|| format!("connect by the relay to {}", target.name()))?;
        let mut flow = Flow::new(client, listener.accept()?.0)?;
        flow.carry(STREAM)
            .with_context(|| format!("TCP by the relay to {}", target.name()))?;
        let after = carried(&lab)?;
        ensure!(
            after.1 > before.1 + 20,
            "the fast path carried {before:?}, then {after:?} packets"
        );
    }
    Ok(())
}

/// An open TCP connection.
struct Flow {
    client: TcpStream,
    server: TcpStream,
}

impl Flow {
    fn new(client: TcpStream, server: TcpStream) -> Result<Self> {
        for stream in [&client, &server] {
            // Long enough for the retransmissions that path-MTU discovery costs.
            stream
                .set_read_timeout(Some(5 * PATIENCE))
                .context("set a timeout")?;
            stream
                .set_write_timeout(Some(5 * PATIENCE))
                .context("set a timeout")?;
        }
        Ok(Self { client, server })
    }

    fn between(from: &Pod, to: &Pod) -> Result<Self> {
        let address = SocketAddr::from((to.address(), 0));
        let listener = to.namespace().inside(|| TcpListener::bind(address))??;
        let target = listener.local_addr()?;
        let client = from
            .namespace()
            .inside(|| TcpStream::connect_timeout(&target, PATIENCE))?
            .with_context(|| format!("connect to {target}"))?;
        Self::new(client, listener.accept()?.0)
    }

    /// Carries bytes from the client to the server and compares them.
    fn carry(&mut self, length: usize) -> Result<()> {
        let sent = pattern(length);
        let (client, server) = (&mut self.client, &mut self.server);
        let received = thread::scope(|scope| -> Result<Vec<u8>> {
            let reader = scope.spawn(move || -> std::io::Result<Vec<u8>> {
                let mut received = vec![0; length];
                server.read_exact(&mut received)?;
                Ok(received)
            });
            client.write_all(&sent).context("write")?;
            let received = reader.join().map_err(|_| anyhow!("the reader panicked"))?;
            received.context("read")
        })?;
        ensure!(received == sent, "{length} bytes arrived changed");
        Ok(())
    }
}

/// Waits until everything that depends on the underlay's MTU shows `mtu`.
fn followed(node: &Node, mtu: u32) -> Result<()> {
    let device = format!(" mtu {mtu} ");
    let line = format!("FLANNEL_MTU={mtu}");
    wait_until(
        &format!("{} to follow to MTU {mtu}", node.name()),
        FOLLOWED,
        || {
            let link = node.run(["ip", "link", "show", "flannel.1"]);
            let file = node.read_file("/run/flannel/subnet.env");
            let status = node.json(["overlayctl", "status", "--output", "json"]);
            link.is_ok_and(|link| link.contains(&device))
                && file.is_ok_and(|file| file.lines().any(|found| found == line))
                && status.is_ok_and(|status| status["peers"][0]["mtu"] == mtu)
        },
    )
    .with_context(|| node.agent_log_tail())
}

#[test]
fn a_lower_mtu_of_the_underlay_is_noticed_and_flows_survive_it() -> Result<()> {
    let lab = lab("mtu")?;
    let (node, sender, receiver) = (lab.node(1), lab.pod(1, 1), lab.pod(2, 1));
    followed(&node, 1450)?;
    let mut flow = Flow::between(&sender, &receiver)?;
    flow.carry(STREAM)?;
    let mss = || getsockopt(&flow.client, TcpMaxSeg).context("ask for the segment size");
    let wide = mss()?;
    let udp_mtu = || -> Result<i32> {
        let address = SocketAddr::from((sender.address(), 0));
        let socket = sender.namespace().inside(|| UdpSocket::bind(address))??;
        socket.connect((receiver.address(), 9)).context("connect")?;
        getsockopt(&socket, IpMtu).context("ask for the path's MTU")
    };
    ensure!(udp_mtu()? == 1450, "the pod's own MTU");

    let set_mtu = |mtu: &str| -> Result<()> {
        for node in lab.nodes() {
            node.run(["ip", "link", "set", "eth0", "mtu", mtu])?;
        }
        Ok(())
    };
    set_mtu("1300")?;
    lab.nodes()
        .iter()
        .try_for_each(|node| followed(node, 1250))?;
    flow.carry(STREAM).context("after the MTU went down")?;
    let narrow = getsockopt(&flow.client, TcpMaxSeg)?;
    ensure!(
        narrow == wide - 200,
        "segments of {wide}, then {narrow} bytes"
    );
    ensure!(udp_mtu()? == 1250, "UDP did not learn the path's MTU");
    let target = receiver.address().to_string();
    let ping = |size: &str| sender.exec(["ping", "-c1", "-W2", "-Mdo", "-s", size, &target]);
    ensure!(
        !ping("1300")?.status.success(),
        "too long with DF and delivered"
    );
    ensure!(
        ping("1222")?.status.success(),
        "as long as the path allows, lost"
    );
    // What may be fragmented, is.
    traffic_both_ways(&sender, &receiver)?;

    let before = carried(&lab)?;
    flow.carry(STREAM)?;
    let after = carried(&lab)?;
    ensure!(
        after.0 > before.0 + 20,
        "shorter segments stay on the fast path"
    );

    set_mtu("1500")?;
    lab.nodes()
        .iter()
        .try_for_each(|node| followed(node, 1450))?;
    flow.carry(STREAM).context("after the MTU went up again")?;
    sender.run(["ip", "route", "flush", "cache"])?;
    ensure!(
        ping("1422")?.status.success(),
        "as long as the path allows again, lost"
    );
    Ok(())
}

#[test]
fn a_lower_mtu_of_the_route_to_a_peer_is_kept() -> Result<()> {
    let lab = lab("routemtu")?;
    let (node, sender, receiver) = (lab.node(1), lab.pod(1, 1), lab.pod(2, 1));
    let peer = lab.node(2).underlay_address().to_string();
    let peer_mtu = |mtu: u32| {
        wait_until(&format!("the fast path to keep to {mtu}"), FOLLOWED, || {
            node.json(["overlayctl", "status", "--output", "json"])
                .is_ok_and(|status| status["peers"][0]["mtu"] == mtu)
        })
        .with_context(|| node.agent_log_tail())
    };
    peer_mtu(1450)?;
    let line = format!("ip route add {peer}/32 dev eth0 mtu 1300");
    node.run(line.split(' '))?;
    peer_mtu(1250)?;
    // Pods may send what the device takes; the kernel makes fragments of it that fit the route.
    let before = packets(&node, "pod_in", "too_long")?;
    let mut flow = Flow::between(&sender, &receiver)?;
    ethtool(&sender.namespace(), "eth0", "tso off gso off")?;
    let ((), longest) = watch(&lab, || flow.carry(STREAM / 10))?;
    ensure!(
        longest.wire <= 1314 && longest.receiver > 1314,
        "not fragmented on the wire alone: {longest:?}"
    );
    ensure!(
        packets(&node, "pod_in", "too_long")? > before + 20,
        "what does not fit the route was not left to the kernel"
    );
    node.run(["ip", "route", "delete", &peer])?;
    peer_mtu(1450)?;
    let ((), longest) = watch(&lab, || flow.carry(STREAM / 10))?;
    ensure!(longest.wire == UNDERLAY_FRAME, "still cut: {longest:?}");
    Ok(())
}

/// Sent again: one segment in so many is what an idle machine might do to probe.
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
    // On one processor: a sender that wanders between two overtakes itself in their queues, by any path.
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

fn traffic_both_ways(from: &Pod, to: &Pod) -> Result<()> {
    use overlay_tests::traffic::{Answers, udp};
    let (from, to) = (reach::of_pod(from), reach::of_pod(to));
    udp(&from, &to, 1240, Answers::Twice).map(drop)
}
