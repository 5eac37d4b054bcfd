//! tc ingress of the NIC: what the network sends.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{FromNetwork, from_network};
use overlay_common::packet::{ETHERNET_LEN, Packet as _};
use overlay_common::{Hook, Verdict, vxlan};

use crate::decap::decapsulate;
use crate::direct::deliver;
use crate::encap::Error;
use crate::maps::Maps;
use crate::outcome::{Outcome, end};
use crate::refusal;
use crate::skb::Skb;

#[classifier]
pub fn ov_net_in(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let bytes = skb.frame_len();
    end(&skb, Hook::NetIn, bytes, handle(&skb))
}

#[inline(always)]
fn handle(skb: &Skb) -> (Verdict, Outcome) {
    match from_network(skb, &Maps) {
        FromNetwork::Decapsulate {
            pod,
            gateway_mac,
            header,
        } => match decapsulate(skb, pod, gateway_mac, header) {
            Ok(action) => (Verdict::Decapsulated, Outcome::Done(action)),
            Err(Error::Untouched) => {
                let inner = ETHERNET_LEN + vxlan::OVERHEAD;
                (Verdict::AdjustFailed, Outcome::HandOver(Some(inner)))
            }
            Err(Error::Changed) => (Verdict::Failed, Outcome::Done(TC_ACT_SHOT)),
        },
        FromNetwork::Deliver {
            pod,
            gateway_mac,
            header,
        } => match deliver(skb, pod, gateway_mac, header) {
            Ok(action) => (Verdict::Redirected, Outcome::Done(action)),
            Err(_) => (Verdict::AdjustFailed, Outcome::HandOver(Some(ETHERNET_LEN))),
        },
        FromNetwork::Pass(pass) => {
            if pass.vouched {
                skb.vouch();
            }
            Outcome::pass(pass)
        }
        FromNetwork::Refuse(verdict) => {
            refusal::tell(skb, Hook::NetIn, verdict);
            (verdict, Outcome::Done(TC_ACT_SHOT))
        }
    }
}
