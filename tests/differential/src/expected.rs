//! What a program has to do with a packet, as the decision in Rust says.

use overlay_common::decide::{
    FromNetwork, FromPod, Leaving, from_network, from_pod, leaving, sending,
};
use overlay_common::packet::ETHERNET_LEN;
use overlay_common::schema::{Config, PeerEntry};
use overlay_common::snapshot::Snapshot;
use overlay_common::visit::{Outcome, Visit};
use overlay_common::{Family, Hook, Verdict};

use crate::kernel::Ran;

/// Of include/uapi/linux/pkt_cls.h: go on, drop, redirect.
const UNSPEC: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
/// Of include/uapi/linux/bpf.h.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// The verdict that has to be counted for what a program did, or where that differs from what it
/// has to do.
///
/// # Errors
/// The difference, in a sentence.
pub fn verdict<F: Family>(
    visit: &Visit,
    world: &Snapshot<F>,
    want: Outcome<F>,
    ran: &Ran,
) -> Result<Verdict, String> {
    if is_declined(visit, want) {
        return if ran.action == UNSPEC && ran.frame == visit.frame {
            // What the stack sends goes on by its device, as if nothing had been tried.
            match want {
                Outcome::Send(_) => Ok(left(visit, world)),
                _ => Ok(Verdict::AdjustFailed),
            }
        } else {
            Err(format!(
                "{want:?}: a super-packet without a segmentation type is changed, or not passed \
                on: {}",
                ran.action
            ))
        };
    }
    let early = visit.hook == Hook::NetXdp;
    let action = match want {
        Outcome::Pass(_) if early => XDP_PASS,
        Outcome::Refuse(_) if early => XDP_DROP,
        Outcome::Fast(_) | Outcome::Send(_) | Outcome::HandIn(_) => REDIRECT,
        Outcome::Pass(_) | Outcome::PassPlain(_) | Outcome::Remember(_) => UNSPEC,
        Outcome::Refuse(_) => SHOT,
    };
    if ran.action != action {
        return Err(format!(
            "the program returned {} instead of {action}: the decision is {want:?}",
            ran.action
        ));
    }
    let frame = frame(visit, world, want, &ran.frame)?;
    if ran.frame != frame {
        let at = ran
            .frame
            .iter()
            .zip(&frame)
            .take_while(|(a, b)| a == b)
            .count();
        return Err(format!(
            "{want:?}, but the frame differs from byte {at} on: {} instead of {}",
            hex(&ran.frame),
            hex(&frame)
        ));
    }
    Ok(want.verdict())
}

/// The verdict on a packet that leaves when nothing is encapsulated.
fn left<F: Family>(visit: &Visit, world: &Snapshot<F>) -> Verdict {
    let packet = visit.packet();
    match leaving::<F, F, _, _>(&packet, world, visit.hook, visit.handed_over) {
        Leaving::Remember(_) => Verdict::Remembered,
        Leaving::Pass(verdict) => verdict,
    }
}

/// A made-up super-packet has a segment size, but no segmentation type (`BPF_PROG_TEST_RUN` sets
/// none), so that the kernel declines to change it (`bpf_skb_net_grow()` and `bpf_skb_net_shrink()`
/// in net/core/filter.c). Real ones are for `offloads`.
fn is_declined<F: Family>(visit: &Visit, want: Outcome<F>) -> bool {
    let changes = [
        Verdict::Encapsulated,
        Verdict::EncapsulatedForStack,
        Verdict::Decapsulated,
    ];
    visit.gso_size != 0 && changes.contains(&want.verdict())
}

/// The frame afterwards; `got` is asked for what the program chooses freely.
fn frame<F: Family>(
    visit: &Visit,
    world: &Snapshot<F>,
    want: Outcome<F>,
    got: &[u8],
) -> Result<Vec<u8>, String> {
    let packet = visit.packet();
    match want {
        Outcome::Fast(Verdict::Encapsulated) if visit.hook == Hook::PodIn => {
            let FromPod::Encapsulate {
                config,
                peer,
                header,
                len,
                ecn,
            } = from_pod::<F, F, _, _>(&packet, world)
            else {
                return Err("the decision changed its mind".to_owned());
            };
            let outer = front(config, peer, (len, ecn), got)?;
            let payload = (ETHERNET_LEN + F::HEADER_LEN) as usize;
            Ok([
                outer.as_ref(),
                bytemuck::bytes_of(&header),
                &visit.frame[payload..],
            ]
            .concat())
        }
        Outcome::Send(_) => {
            let sending = sending::<F, F, _, _>(&packet, world, visit.handed_over);
            let Some(it) = sending.tunnel else {
                return Err("the decision changed its mind".to_owned());
            };
            let outer = front(it.config, it.peer, (it.len, it.ecn), got)?;
            Ok([outer.as_ref(), &visit.frame[ETHERNET_LEN as usize..]].concat())
        }
        Outcome::HandIn(_) => Ok(visit.frame[F::VXLAN_OVERHEAD as usize..].to_vec()),
        Outcome::Fast(Verdict::Decapsulated) => {
            let FromNetwork::Decapsulate {
                pod,
                gateway_mac,
                header,
            } = from_network::<F, F, _, _>(&packet, world)
            else {
                return Err("the decision changed its mind".to_owned());
            };
            let inner = &visit.frame[F::VXLAN_OVERHEAD as usize..];
            Ok(routed::<F>(pod.mac, gateway_mac, &header, inner))
        }
        Outcome::Fast(Verdict::Routed) => {
            let FromPod::Route { peer, header, .. } = from_pod::<F, F, _, _>(&packet, world) else {
                return Err("the decision changed its mind".to_owned());
            };
            let (next_hop, nic) = peer.outer_macs();
            Ok(routed::<F>(next_hop, nic, &header, &visit.frame))
        }
        Outcome::Fast(Verdict::Redirected) if visit.hook == Hook::NetIn => {
            let FromNetwork::Deliver {
                pod,
                gateway_mac,
                header,
            } = from_network::<F, F, _, _>(&packet, world)
            else {
                return Err("the decision changed its mind".to_owned());
            };
            Ok(routed::<F>(pod.mac, gateway_mac, &header, &visit.frame))
        }
        _ => Ok(visit.frame.clone()),
    }
}

/// What stands in front of an encapsulated packet of `len` bytes; `got` is asked for what the
/// program chooses freely.
fn front<F: Family>(
    config: &Config<F>,
    peer: &PeerEntry<F>,
    (len, ecn): (u32, u8),
    got: &[u8],
) -> Result<F::Front, String> {
    let (id, port) = (
        field(got, 18),
        field(got, (ETHERNET_LEN + F::HEADER_LEN) as usize),
    );
    let ports = u32::from(config.source_port_min)
        ..=u32::from(config.source_port_min) + u32::from(config.source_port_count);
    if !ports.contains(&u32::from(port)) {
        return Err(format!("source port {port} is outside {ports:?}"));
    }
    let mut outer = peer.header;
    F::stamp(&mut outer, len, ecn, || id, port);
    Ok(outer)
}

/// A frame with other MAC addresses and another IP header.
fn routed<F: Family>(
    destination: [u8; 6],
    source: [u8; 6],
    header: &F::Header,
    frame: &[u8],
) -> Vec<u8> {
    let payload = (ETHERNET_LEN + F::HEADER_LEN) as usize;
    [
        &destination[..],
        &source,
        &F::ETHERTYPE.to_be_bytes(),
        bytemuck::bytes_of(header),
        &frame[payload..],
    ]
    .concat()
}

fn field(frame: &[u8], at: usize) -> u16 {
    let bytes = frame.get(at..at + 2).unwrap_or(&[0, 0]);
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// Bytes as two digits each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
