//! tc ingress of the NIC: packets from the network.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{FromNetwork, from_network};
use overlay_common::packet::{ETHERNET_LEN, Packet as _};
use overlay_common::{Hook, Verdict};

use crate::decap::{decapsulate, hand_in};
use crate::disposition::{Disposition, end};
use crate::forward::{Error, deliver};
use crate::maps::{Mapped, Maps, Served};
use crate::skb::Skb;

#[classifier]
pub fn ov_net_in(ctx: TcContext) -> i32 {
    handle::<Served>(&Skb::new(&ctx))
}

#[inline(always)]
fn handle<F: Mapped>(skb: &Skb) -> i32 {
    let bytes = skb.frame_len();
    end::<F>(skb, Hook::NetIn, bytes, visit::<F>(skb))
}

#[inline(always)]
fn visit<F: Mapped>(skb: &Skb) -> (Verdict, Disposition) {
    match from_network::<F, F, _, _>(skb, &Maps) {
        FromNetwork::Decapsulate {
            pod,
            gateway_mac,
            header,
        } => match decapsulate::<F, F>(skb, pod, gateway_mac, header) {
            Ok(action) => (Verdict::Decapsulated, Disposition::Done(action)),
            Err(Error::Untouched) => {
                let inner = ETHERNET_LEN + F::VXLAN_OVERHEAD;
                (Verdict::AdjustFailed, Disposition::HandOver(Some(inner)))
            }
            Err(Error::Changed) => (Verdict::Failed, Disposition::Done(TC_ACT_SHOT)),
        },
        FromNetwork::Deliver {
            pod,
            gateway_mac,
            header,
        } => match deliver::<F>(skb, pod, gateway_mac, header) {
            Ok(action) => (Verdict::Redirected, Disposition::Done(action)),
            Err(_) => (
                Verdict::AdjustFailed,
                Disposition::HandOver(Some(ETHERNET_LEN)),
            ),
        },
        FromNetwork::HandIn {
            device,
            ethernet,
            pass,
        } => match hand_in::<F>(skb, device, ethernet) {
            Ok(action) => {
                let plain = pass.plain.map(|_| ETHERNET_LEN);
                (pass.verdict, Disposition::HandIn(action, plain))
            }
            Err(Error::Untouched) => Disposition::pass(pass),
            Err(Error::Changed) => (Verdict::Failed, Disposition::Done(TC_ACT_SHOT)),
        },
        FromNetwork::Pass(pass) => Disposition::pass(pass),
        FromNetwork::Refuse(verdict) => (verdict, Disposition::Refused),
    }
}
