//! What a program has to do with a packet, as the decision in Rust says.

use overlay_common::decide::{FromNetwork, FromPod, from_network, from_pod};
use overlay_common::packet::ETHERNET_LEN;
use overlay_common::{Family as _, Hook, V4, Verdict, vxlan};

use super::kernel::Ran;
use crate::decide::cases::{Case, Outcome};

/// Of include/uapi/linux/pkt_cls.h: go on, drop, redirect.
const UNSPEC: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
/// Of include/uapi/linux/bpf.h.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// Where what a program did differs from what it has to do.
pub fn mismatch(case: &Case, ran: &Ran) -> Option<String> {
    let early = case.hook == Hook::NetXdp;
    let (action, remembered) = match case.want {
        Outcome::Pass(_) if early => (XDP_PASS, None),
        Outcome::Refuse(_) if early => (XDP_DROP, None),
        Outcome::Fast(_) => (REDIRECT, None),
        Outcome::Pass(_) | Outcome::PassPlain(_) => (UNSPEC, None),
        Outcome::Refuse(_) => (SHOT, None),
        Outcome::Remember(flow) => (UNSPEC, Some(flow)),
    };
    let mut expected = (action, case.want.verdict(), remembered);
    let frame = if may_be_refused(case) && ran.verdict == Verdict::AdjustFailed {
        expected = (UNSPEC, Verdict::AdjustFailed, None);
        case.frame.clone()
    } else {
        frame(case, &ran.frame)
    };
    let did = (ran.action, ran.verdict, ran.remembered);
    if did != expected {
        return Some(format!("{did:?} instead of {expected:?}"));
    }
    (ran.frame != frame).then(|| format!("frame {:02x?} instead of {frame:02x?}", ran.frame))
}

/// A made-up super-packet has a segment size, but no segmentation type: the kernel may decline to change
/// what it could not segment afterwards.
fn may_be_refused(case: &Case) -> bool {
    let changes = [Verdict::Encapsulated, Verdict::Decapsulated];
    case.gso_size != 0 && changes.contains(&case.want.verdict())
}

/// The frame afterwards; `got` is asked for what the program chooses freely.
fn frame(case: &Case, got: &[u8]) -> Vec<u8> {
    let (packet, world) = (case.packet(), &case.world);
    if case.hook == Hook::PodIn
        && let FromPod::Encapsulate {
            config,
            peer,
            header,
            len,
            ecn,
        } = from_pod::<V4, _, _>(&packet, world)
    {
        let (id, port) = (field(got, 18), field(got, 34));
        let last = config.source_port_min + config.source_port_count;
        assert!(
            (config.source_port_min..=last).contains(&port),
            "source port {port}"
        );
        let mut outer = peer.header;
        vxlan::stamp(&mut outer, len, ecn, id, port);
        let payload = (ETHERNET_LEN + V4::HEADER_LEN) as usize;
        return [
            &outer,
            bytemuck::cast_slice(&header),
            &case.frame[payload..],
        ]
        .concat();
    }
    if case.hook == Hook::NetIn
        && let FromNetwork::Decapsulate {
            pod,
            gateway_mac,
            header,
        } = from_network::<V4, _, _>(&packet, world)
    {
        let payload = (ETHERNET_LEN + vxlan::OVERHEAD + V4::HEADER_LEN) as usize;
        return [
            &pod.mac[..],
            &gateway_mac,
            &V4::ETHERTYPE.to_be_bytes(),
            bytemuck::cast_slice(&header),
            &case.frame[payload..],
        ]
        .concat();
    }
    case.frame.clone()
}

fn field(frame: &[u8], at: usize) -> u16 {
    let bytes = frame.get(at..at + 2).unwrap_or(&[0, 0]);
    u16::from_be_bytes([bytes[0], bytes[1]])
}
