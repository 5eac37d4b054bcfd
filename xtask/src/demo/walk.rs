//! The walk of one packet: every interface on the path is watched, and shows whether the packet
//! passed.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use overlay_tests::packet::{Frame, RawSocket};
use overlay_tests::reach::of_pod;
use overlay_tests::traffic::Endpoint;
use overlay_tests::{Lab, Namespace, Node, Pod, traffic};
use serde::Serialize;
use serde_json::Value;

use crate::lab::table;

/// Size of the payload of the followed echo; no other packet has its pattern.
const PAYLOAD: usize = 333;
/// Time without a packet after which watching ends.
const QUIET: Duration = Duration::from_millis(50);
/// Byte offsets in an Ethernet frame with IPv4 inside, without options.
const PROTOCOL: usize = 23;
const SOURCE: usize = 26;
const DESTINATION: usize = 30;
/// UDP (RFC 768).
const UDP: u8 = 17;
/// ICMP echo request (RFC 792), and the bytes of its header.
const ECHO_REQUEST: u8 = 8;
const ECHO_HEADER: usize = 8;
/// The number of the echo, at the begin of the payload.
const ECHO_MARK: usize = 2;

/// One interface on the path.
#[derive(Debug, Serialize)]
pub struct Step {
    /// Node, pod or underlay.
    pub place: String,
    pub interface: String,
    /// The packet that passed; `None` where the packet took a shorter path.
    pub seen: Option<Seen>,
}

/// The packet at an interface.
#[derive(Debug, Serialize)]
pub struct Seen {
    pub bytes: usize,
    /// Source of the outermost header.
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub encapsulated: bool,
}

/// A pod at the begin or end of the walk.
pub struct End {
    pub pod: Endpoint,
    pub node: Node,
}

impl End {
    pub fn of(pod: &Pod) -> Self {
        Self {
            pod: of_pod(pod),
            node: pod.node(),
        }
    }

    /// Name of the node's end of the pod's cable.
    fn host_interface(&self) -> Result<String> {
        let peer = self
            .pod
            .namespace
            .run(["ip", "-json", "link", "show", "eth0"])?;
        let peer: Value = serde_json::from_str(&peer).context("understand what `ip` says")?;
        let links = self.node.json(["ip", "-json", "link", "show"])?;
        let mut links = links.as_array().into_iter().flatten();
        let link = links.find(|link| link["ifindex"] == peer[0]["link_index"]);
        let name = link.and_then(|link| link["ifname"].as_str());
        Ok(name.context("a pod without a cable")?.to_owned())
    }
}

/// Follows one ICMP echo request.
pub fn walk(lab: &Lab, from: &End, to: &End) -> Result<Vec<Step>> {
    // The first packet causes requests for MAC addresses, so the second one is followed.
    traffic::icmp(&from.pod, &to.pod, 1)?;
    let watched = watch_points(lab, from, to)?
        .into_iter()
        .map(|(place, namespace, interface)| {
            let socket = RawSocket::open(&namespace, &interface)?;
            Ok((place, interface, socket))
        })
        .collect::<Result<Vec<_>>>()?;
    traffic::icmp(&from.pod, &to.pod, PAYLOAD)?;
    watched
        .into_iter()
        .map(|(place, interface, socket)| {
            let frames = socket.drain(QUIET)?;
            let seen = frames.iter().find_map(recognise);
            Ok(Step {
                place,
                interface,
                seen,
            })
        })
        .collect()
}

type WatchPoint = (String, Namespace, String);

/// Every interface of the kernel path between two pods of two nodes.
fn watch_points(lab: &Lab, from: &End, to: &End) -> Result<Vec<WatchPoint>> {
    let on = |node: &Node, interface: &str| (node.name(), node.namespace(), interface.to_owned());
    let wire = |node: &Node| -> Result<WatchPoint> {
        Ok((
            "underlay".to_owned(),
            lab.namespace("underlay")?,
            node.name(),
        ))
    };
    let pod = |end: &End| {
        let Endpoint {
            name, namespace, ..
        } = &end.pod;
        (name.clone(), namespace.clone(), "eth0".to_owned())
    };
    let (near, far) = (&from.node, &to.node);
    let (near_vtep, far_vtep) = (vtep(near)?, vtep(far)?);
    Ok(vec![
        pod(from),
        on(near, &from.host_interface()?),
        on(near, "cni0"),
        on(near, &near_vtep),
        on(near, "eth0"),
        wire(near)?,
        wire(far)?,
        on(far, "eth0"),
        on(far, &far_vtep),
        on(far, "cni0"),
        on(far, &to.host_interface()?),
        pod(to),
    ])
}

/// Name of the node's VXLAN device.
fn vtep(node: &Node) -> Result<String> {
    let links = node.json(["ip", "-json", "link", "show", "type", "vxlan"])?;
    let mut names = links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|link| link["ifname"].as_str());
    let ours = names.find(|name| name.starts_with("flannel."));
    Ok(ours
        .with_context(|| format!("{} has no VXLAN device", node.name()))?
        .to_owned())
}

/// The followed packet in this frame, if the frame contains it.
fn recognise(frame: &Frame) -> Option<Seen> {
    let bytes = &frame.bytes;
    let payload = traffic::pattern(PAYLOAD);
    let tail = &payload[ECHO_MARK..];
    let at = bytes
        .windows(tail.len())
        .position(|window| window == tail)?;
    if *bytes.get(at.checked_sub(ECHO_HEADER + ECHO_MARK)?)? != ECHO_REQUEST {
        return None;
    }
    let address = |offset: usize| -> Option<Ipv4Addr> {
        let octets: [u8; 4] = bytes.get(offset..offset + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    Some(Seen {
        bytes: bytes.len(),
        source: address(SOURCE)?,
        destination: address(DESTINATION)?,
        encapsulated: *bytes.get(PROTOCOL)? == UDP,
    })
}

/// Whether the packet was seen at the first and at the last interface.
pub fn has_arrived(steps: &[Step]) -> bool {
    let ends = [steps.first(), steps.last()];
    ends.iter()
        .all(|end| end.is_some_and(|step| step.seen.is_some()))
}

/// A table, one line per interface.
pub fn render(steps: &[Step]) -> String {
    let mut shown = table::table(["PLACE", "INTERFACE", "PACKET"]);
    for Step {
        place,
        interface,
        seen,
    } in steps
    {
        let seen = seen.as_ref().map_or_else(
            || "· not here: the fast path goes past it".to_owned(),
            |Seen {
                 bytes,
                 source,
                 destination,
                 encapsulated,
             }| {
                let how = if *encapsulated {
                    "VXLAN with the echo inside"
                } else {
                    "ICMP echo"
                };
                format!("{source} → {destination}  {how}, {bytes} bytes")
            },
        );
        shown.add_row([place, interface, &seen]);
    }
    format!("\n{shown}\n")
}
