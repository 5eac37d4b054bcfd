//! tc ingress of the NIC: what the network sends.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{FromNetwork, from_network};
use overlay_common::packet::Packet as _;
use overlay_common::{Hook, Verdict};

use crate::decap::decapsulate;
use crate::encap::Error;
use crate::maps::{Maps, count};
use crate::refusal;
use crate::skb::Skb;

#[classifier]
pub fn ov_net_in(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let bytes = skb.frame_len();
    let (verdict, action) = handle(&skb);
    count(Hook::NetIn, verdict, bytes);
    action
}

#[inline(always)]
fn handle(skb: &Skb) -> (Verdict, i32) {
    match from_network(skb, &Maps) {
        FromNetwork::Decapsulate {
            pod,
            gateway_mac,
            header,
        } => match decapsulate(skb, pod, gateway_mac, header) {
            Ok(action) => (Verdict::Decapsulated, action),
            Err(Error::Untouched) => {
                skb.set_plain(true);
                (Verdict::AdjustFailed, TC_ACT_UNSPEC)
            }
            Err(Error::Changed) => (Verdict::Failed, TC_ACT_SHOT),
        },
        FromNetwork::Pass(pass) => {
            skb.set_plain(pass.plain);
            (pass.verdict, TC_ACT_UNSPEC)
        }
        FromNetwork::Refuse(verdict) => {
            refusal::tell(skb, Hook::NetIn, verdict);
            (verdict, TC_ACT_SHOT)
        }
    }
}
