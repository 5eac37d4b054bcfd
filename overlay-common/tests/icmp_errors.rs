//! What becomes of ICMP errors, which quote the packet that they are about.

use overlay_common::decide::{self, FromPod, Tables, from_pod};
use overlay_common::packet::Frame;
use overlay_common::schema::{CONFIG_ACTIVE, Config, Endpoint, FlowKey, Peer, Pod};
use overlay_common::{V4, Verdict, checksum};

const POD: [u8; 4] = [10, 244, 1, 2];
const NEIGHBOUR: [u8; 4] = [10, 244, 1, 3];
const SERVICE: [u8; 4] = [10, 96, 0, 1];
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const NEIGHBOUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const UDP: u8 = 17;

/// A node with two pods, and at most one flow that the stack owns.
struct Node {
    config: Config<V4>,
    endpoint: Endpoint<V4>,
    neighbour: Pod,
    flow: Option<FlowKey<V4>>,
}

impl Node {
    fn new(flow: Option<FlowKey<V4>>) -> Self {
        Self {
            config: Config {
                flags: CONFIG_ACTIVE,
                network: [10, 244, 0, 0],
                network_mask: [255, 255, 0, 0],
                subnet: [10, 244, 1, 0],
                subnet_mask: [255, 255, 255, 0],
                peer_mask: [255, 255, 255, 0],
                ..bytemuck::Zeroable::zeroed()
            },
            endpoint: Endpoint {
                address: POD,
                mac: POD_MAC,
                flags: 0,
            },
            neighbour: Pod {
                ifindex: 7,
                mtu: 1450,
                mac: NEIGHBOUR_MAC,
                flags: 0,
            },
            flow,
        }
    }
}

impl Tables<V4> for Node {
    fn config(&self) -> Option<&Config<V4>> {
        Some(&self.config)
    }
    fn endpoint(&self, _: u32) -> Option<&Endpoint<V4>> {
        Some(&self.endpoint)
    }
    fn pod(&self, address: [u8; 4]) -> Option<&Pod> {
        (address == NEIGHBOUR).then_some(&self.neighbour)
    }
    fn peer(&self, _: [u8; 4]) -> Option<&Peer<V4>> {
        None
    }
    fn is_vtep(&self, _: [u8; 4]) -> bool {
        false
    }
    fn is_stack_owned(&self, flow: &FlowKey<V4>) -> bool {
        self.flow == Some(*flow)
    }
}

fn ip(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    header[8..10].copy_from_slice(&[64, protocol]);
    header[12..16].copy_from_slice(&source);
    header[16..20].copy_from_slice(&destination);
    let sum = checksum::of(&bytemuck::cast::<[u8; 20], [u32; 5]>(header)).to_ne_bytes();
    header[10..12].copy_from_slice(&sum);
    [&header, payload].concat()
}

/// The pod tells its neighbour that nobody listens (RFC 792), about a datagram that went from port 40000 of
/// `sender` to port 53 of `receiver`.
fn unreachable(sender: [u8; 4], receiver: [u8; 4]) -> Vec<u8> {
    let ports = [156, 64, 0, 53, 0, 8, 0, 0];
    let quoted = ip(sender, receiver, UDP, &ports);
    let message = [&[3, 3, 0, 0, 0, 0, 0, 0], quoted.as_slice()].concat();
    let ethernet = [NEIGHBOUR_MAC, POD_MAC].concat();
    [ethernet, vec![8, 0], ip(POD, NEIGHBOUR, 1, &message)].concat()
}

fn passed(decision: FromPod<'_, V4>) -> Option<decide::Pass> {
    match decision {
        FromPod::Pass(pass) => Some(pass),
        _ => None,
    }
}

#[test]
fn an_error_about_plain_traffic_is_plain_traffic() {
    let frame = unreachable(NEIGHBOUR, POD);
    let node = Node::new(None);
    assert!(matches!(
        from_pod(&Frame::new(&frame), &node),
        FromPod::Redirect(_)
    ));
}

#[test]
fn an_error_about_a_translated_flow_goes_back_through_the_stack() {
    let frame = unreachable(NEIGHBOUR, POD);
    let flow = FlowKey::new((NEIGHBOUR, 40000), (POD, 53), UDP);
    let node = Node::new(Some(flow));
    let pass = passed(from_pod(&Frame::new(&frame), &node)).expect("left to the kernel");
    assert_eq!(pass.verdict, Verdict::StackOwned);
}

#[test]
fn an_error_about_somebody_elses_packet_is_left_to_the_kernel() {
    for (sender, receiver) in [(NEIGHBOUR, SERVICE), (SERVICE, POD)] {
        let frame = unreachable(sender, receiver);
        let node = Node::new(None);
        let pass = passed(from_pod(&Frame::new(&frame), &node)).expect("left to the kernel");
        assert_eq!(pass.verdict, Verdict::IcmpError);
    }
}

#[test]
fn an_error_that_quotes_too_little_is_left_to_the_kernel() {
    let whole = unreachable(NEIGHBOUR, POD);
    let message = &whole[34..34 + 8 + 20 + 2];
    let frame = [&whole[..14], &ip(POD, NEIGHBOUR, 1, message)].concat();
    let node = Node::new(None);
    let pass = passed(from_pod(&Frame::new(&frame), &node)).expect("left to the kernel");
    assert_eq!(pass.verdict, Verdict::IcmpError);
}
