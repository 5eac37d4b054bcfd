//! Long packets: jumbo frames, and super-packets beyond 64 KiB (BIG TCP for IPv4, since Linux 6.3).

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use overlay_tests::fast_path::{packets, wait_serving};
use overlay_tests::packet::RawSocket;
use overlay_tests::{Lab, Options, Pod};
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::LinkAttribute;
use tokio::runtime::Builder;

use crate::support::{Flow, QUIET};

/// Size of a stream in bytes: several of the largest super-packets.
const STREAM: usize = 8_000_000;
const JUMBO: u32 = 9000;
/// Longest frame by the length field of an IP header, with the Ethernet header.
const HEADER_CAN_TELL: usize = 65_535 + 14;
/// Largest super-packet here: smaller than the largest frame of a raw socket in the lab.
const LARGEST: u32 = 120_000;

#[test]
fn long_packets_arrive_intact() -> Result<()> {
    let lab = Lab::up(Options {
        underlay_mtu: JUMBO,
        ..Options::for_test("big")
    })?;
    lab.nodes().iter().try_for_each(wait_serving)?;
    let (sender, neighbour, remote) = (lab.pod(1, 1), lab.pod(1, 2), lab.pod(2, 1));
    for pod in [&sender, &neighbour, &remote] {
        if !pod.namespace().inside(allow_big_tcp)?? {
            println!(
                "no super-packets beyond 64 KiB: this kernel has no BIG TCP for IPv4 (6.3 has)"
            );
            return lab.down();
        }
    }

    let count = |verdict| packets(&lab.node(1), "pod_in", verdict);
    let redirected = count("redirected")?;
    let longest = longest_frame(&sender, &neighbour).context("on the same node")?;
    ensure!(
        longest > HEADER_CAN_TELL,
        "no super-packet beyond 64 KiB came about: {longest} bytes at most"
    );
    ensure!(
        count("redirected")? > redirected + 20 && count("malformed")? == 0,
        "the fast path did not carry them"
    );

    // No tunnel header can hold such a length; the kernel splits the packets in front of the
    // tunnel.
    let too_long = count("too_long")?;
    longest_frame(&sender, &remote).context("across nodes")?;
    ensure!(
        count("too_long")? > too_long,
        "no super-packet beyond 64 KiB was handed over"
    );

    // Data that fits in one frame is sent in one frame, and by the fast path.
    for device in ["tso", "gso"] {
        sender.run(["ethtool", "-K", "eth0", device, "off"])?;
    }
    let encapsulated = count("encapsulated")?;
    let longest = longest_frame(&sender, &remote).context("in jumbo frames")?;
    let whole = JUMBO as usize - 50 + 14;
    ensure!(
        longest == whole,
        "frames of {longest} bytes instead of {whole} at most"
    );
    ensure!(
        count("encapsulated")? > encapsulated + (STREAM / whole) as u64,
        "the fast path did not carry jumbo frames"
    );
    lab.down()
}

/// Lets `eth0` of the calling thread's namespace send and receive super-packets beyond 64 KiB,
/// because ip(8) can do this only from version 6.3 on. Returns whether the kernel accepted the
/// limit: a kernel without the attributes ignores them.
fn allow_big_tcp() -> Result<bool> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
        tokio::spawn(connection);
        let link = LinkUnspec::new_with_name("eth0")
            .append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(LARGEST))
            .append_extra_attribute(LinkAttribute::GroIpv4MaxSize(LARGEST))
            .build();
        let change = handle.link().set(link).execute();
        change.await.context("raise the limits of eth0")?;
        let mut get = handle.link().get().match_name("eth0".to_owned()).execute();
        let link = get.try_next().await.context("read the limits of eth0")?;
        let attributes = link.context("no eth0")?.attributes;
        Ok(attributes.contains(&LinkAttribute::GsoIpv4MaxSize(LARGEST)))
    })
}

/// Carries a stream and returns the length of the longest frame that reached the receiver.
fn longest_frame(from: &Pod, to: &Pod) -> Result<usize> {
    let receiver = RawSocket::open(&to.namespace(), "eth0")?;
    Flow::between(from, to)?.carry(STREAM)?;
    let frames = receiver.drain(QUIET)?;
    let arrived = frames.iter().filter(|frame| !frame.outgoing);
    Ok(arrived.map(|frame| frame.bytes.len()).max().unwrap_or(0))
}
