//! tc ingress of a pod's host veth: what the pod sends.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::bpf_redirect_peer;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{FromPod, from_pod};
use overlay_common::packet::{ETHERNET_LEN, Packet as _};
use overlay_common::{Hook, Verdict};

use crate::direct::route;
use crate::encap::{Error, encapsulate};
use crate::maps::Maps;
use crate::outcome::{Outcome, end};
use crate::refusal;
use crate::skb::Skb;

#[classifier]
pub fn ov_pod_in(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let bytes = skb.frame_len();
    end(&skb, Hook::PodIn, bytes, handle(&skb))
}

#[inline(always)]
fn handle(skb: &Skb) -> (Verdict, Outcome) {
    match from_pod(skb, &Maps) {
        FromPod::Redirect(pod) => {
            let ifindex = pod.ifindex;
            skb.take_in();
            // SAFETY: a tc ingress program may redirect to a veth peer.
            let action = unsafe { bpf_redirect_peer(ifindex, 0) };
            (Verdict::Redirected, Outcome::Done(action as i32))
        }
        FromPod::Encapsulate {
            config,
            peer,
            header,
            len,
            ecn,
        } => match encapsulate(skb, config, peer, header, len, ecn) {
            Ok(action) => (Verdict::Encapsulated, Outcome::Done(action)),
            Err(Error::Untouched) => (Verdict::AdjustFailed, Outcome::HandOver(Some(ETHERNET_LEN))),
            Err(Error::Changed) => (Verdict::Failed, Outcome::Done(TC_ACT_SHOT)),
        },
        FromPod::Route {
            config,
            peer,
            header,
        } => match route(skb, config, peer, header) {
            Ok(action) => (Verdict::Routed, Outcome::Done(action)),
            Err(_) => (Verdict::AdjustFailed, Outcome::HandOver(Some(ETHERNET_LEN))),
        },
        FromPod::Pass(pass) => Outcome::pass(pass),
        FromPod::Refuse(verdict) => {
            refusal::tell(skb, Hook::PodIn, verdict);
            (verdict, Outcome::Done(TC_ACT_SHOT))
        }
    }
}
