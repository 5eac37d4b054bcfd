//! tc ingress of the NIC: what the network sends.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{FromNetwork, from_network};
use overlay_common::packet::{ETHERNET_LEN, Packet as _};
use overlay_common::{Hook, Verdict, vxlan};

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
    let (verdict, plain) = match from_network(skb, &Maps) {
        FromNetwork::Decapsulate {
            pod,
            gateway_mac,
            header,
        } => match decapsulate(skb, pod, gateway_mac, header) {
            Ok(action) => return (Verdict::Decapsulated, action),
            Err(Error::Untouched) => {
                let inner = ETHERNET_LEN + vxlan::OVERHEAD;
                (Verdict::AdjustFailed, Some(inner))
            }
            Err(Error::Changed) => return (Verdict::Failed, TC_ACT_SHOT as i32),
        },
        FromNetwork::Pass(pass) => (pass.verdict, pass.plain),
        FromNetwork::Refuse(verdict) => {
            refusal::tell(skb, Hook::NetIn, verdict);
            return (verdict, TC_ACT_SHOT as i32);
        }
    };
    skb.hand_over(plain);
    (verdict, TC_ACT_UNSPEC)
}
