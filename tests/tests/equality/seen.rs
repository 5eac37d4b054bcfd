//! The sent packets that are seen at each place, and the differences.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use overlay_tests::packet::RawSocket;
use overlay_tests::{Lab, Namespace};

use crate::corpus::{FIRST_ID, MAGIC, Probe};
use crate::tags::Tags;
use crate::wire::{ICMP, IPV4, SERVICE_VLAN, UDP, VLAN};

/// Longest time of the last packet, or of its answer, on the way.
const UNDER_WAY: Duration = Duration::from_millis(500);
/// Longest time until a capture that holds all frames returns the next one.
const QUIET: Duration = Duration::from_millis(20);
const ETHERNET_LEN: usize = 14;

/// Frames by probe and by place.
pub type Seen = BTreeMap<(usize, &'static str), Vec<Vec<u8>>>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The first pod of the first node.
    Pod,
    /// The first node, by its underlay device.
    Node,
    /// The IP stack of the first node.
    Stack,
}

/// The socket by which frames are sent.
enum Outlet {
    Device(RawSocket),
    /// A socket for packets with their own IP header.
    Stack(OwnedFd),
}

impl Outlet {
    fn open(lab: &Lab, sender: Sender) -> Result<Self> {
        let node = lab.node(1).namespace();
        let socket = match sender {
            Sender::Pod => RawSocket::open(&lab.pod(1, 1).namespace(), "eth0")?,
            Sender::Node => RawSocket::open(&node, "eth0")?,
            Sender::Stack => {
                let (family, protocol) = (AddressFamily::Inet, SockProtocol::Raw);
                let open = || socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
                let socket = node.inside(open)?.context("open a raw socket")?;
                return Ok(Self::Stack(socket));
            }
        };
        Ok(Self::Device(socket))
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        match self {
            Self::Device(socket) => socket.send(frame),
            Self::Stack(socket) => {
                let packet = &frame[ETHERNET_LEN..];
                let octets = <[u8; 4]>::try_from(&packet[16..20]).context("a whole IP header")?;
                let to = SockaddrIn::from(SocketAddrV4::new(octets.into(), 0));
                match sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty()) {
                    // A packet that the stack does not send makes no difference.
                    Ok(_) | Err(Errno::EMSGSIZE | Errno::EINVAL) => Ok(()),
                    Err(errno) => Err(errno).context("sendto"),
                }
            }
        }
    }
}

/// Sends every probe and collects the frames at all places.
pub fn send(lab: &Lab, probes: &[Probe], sender: Sender) -> Result<Seen> {
    let place = |name, namespace: &Namespace, device| -> Result<_> {
        Ok((name, RawSocket::open(namespace, device)?))
    };
    let places = [
        place("sender", &lab.pod(1, 1).namespace(), "eth0")?,
        place("neighbour", &lab.pod(1, 2).namespace(), "eth0")?,
        place("other node's pod", &lab.pod(2, 1).namespace(), "eth0")?,
        place(
            "other node's second pod",
            &lab.pod(2, 2).namespace(),
            "eth0",
        )?,
    ];
    let wire = RawSocket::open(&lab.node(1).namespace(), "eth0")?;
    let tags = Tags::watch(lab.pod(1, 2))?;
    let outlet = Outlet::open(lab, sender)?;
    for probe in probes {
        for frame in &probe.frames {
            outlet.send(frame).with_context(|| probe.name.clone())?;
        }
    }
    std::thread::sleep(UNDER_WAY);
    let mut seen = Seen::new();
    for (name, socket) in &places {
        // All frames are read, because the sender's own come before the answers.
        for mut frame in socket.drain(QUIET)? {
            if !frame.outgoing
                && let Some(probe) = whose(&mut frame.bytes)
            {
                seen.entry((probe, name)).or_default().push(frame.bytes);
            }
        }
    }
    let on_the_wire = match lab.options().has_tunnels() {
        true => inside,
        false => whose,
    };
    for mut frame in wire.drain(QUIET)? {
        // Frames that this test itself put on the wire do not count.
        if frame.outgoing
            && sender != Sender::Node
            && let Some(probe) = on_the_wire(&mut frame.bytes)
        {
            let place = (probe, "the wire");
            seen.entry(place).or_default().push(frame.bytes);
        }
    }
    for mut frame in tags.frames()? {
        if let Some(probe) = whose(&mut frame) {
            seen.entry((probe, "neighbour, with its tag"))
                .or_default()
                .push(frame);
        }
    }
    // Two processors may deliver in any order.
    for frames in seen.values_mut() {
        frames.sort();
    }
    Ok(seen)
}

/// The probe inside a frame's VXLAN. Fields that the two paths may fill in differently are set to
/// zero: the identification of the outer packet, with its checksum, and the checksum of UDP.
fn inside(frame: &mut [u8]) -> Option<usize> {
    const VXLAN_PORT: [u8; 2] = 8472_u16.to_be_bytes();
    if frame.get(23)? != &UDP || frame.get(36..38)? != VXLAN_PORT {
        return None;
    }
    for varying in [18..20, 24..26, 40..42] {
        frame[varying].fill(0);
    }
    whose(frame.get_mut(50..)?)
}

/// The probe that a frame is, or is an answer to. Fields of answers with random values are set to
/// zero.
fn whose(frame: &mut [u8]) -> Option<usize> {
    let id = |bytes: &[u8]| {
        let id = u16::from_be_bytes(bytes.get(4..6)?.try_into().ok()?);
        // This limit on probes keeps the numbers of fragments and ordinary packets apart.
        (FIRST_ID..FIRST_ID + 0x1000)
            .contains(&id)
            .then(|| usize::from(id - FIRST_ID))
    };
    let kind = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let start = if matches!(kind(12)?, VLAN | SERVICE_VLAN) {
        18
    } else {
        14
    };
    if kind(start - 2)? == IPV4 {
        let packet = frame.get_mut(start..)?;
        let header_len = usize::from(packet.first()? & 0x0f) * 4;
        let is_error =
            *packet.get(9)? == ICMP && matches!(packet.get(header_len), Some(3 | 11 | 12));
        if is_error && let Some(quoted) = packet.get(header_len + 8..).and_then(id) {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
            return Some(quoted);
        }
        return id(packet);
    }
    let mark = frame.windows(4).rfind(|window| window[..2] == MAGIC)?;
    Some(usize::from(u16::from_be_bytes([mark[2], mark[3]])))
}

/// The differences, as text for people.
pub fn differences(probes: &[Probe], slow: &Seen, fast: &Seen) -> Vec<String> {
    let mut keys: Vec<_> = slow.keys().chain(fast.keys()).collect();
    keys.sort();
    keys.dedup();
    let differs = keys
        .into_iter()
        .filter(|key| slow.get(key) != fast.get(key));
    differs
        .map(|key| {
            let show = |seen: &Seen| match seen.get(key) {
                None => "nothing".to_owned(),
                Some(frames) => frames
                    .iter()
                    .map(hex)
                    .collect::<Vec<_>>()
                    .join("\n    and "),
            };
            let name = probes.get(key.0).map_or("?", |probe| &probe.name);
            format!(
                "{name}, at {}:\n  kernel: {}\n  fast:   {}",
                key.1,
                show(slow),
                show(fast)
            )
        })
        .collect()
}

pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    let bytes: Vec<_> = bytes
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    bytes.join(":")
}
