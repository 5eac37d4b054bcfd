//! tc ingress of a pod's host veth: what the pod sends.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_redirect_peer;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{FromPod, from_pod};
use overlay_common::packet::Packet as _;
use overlay_common::{Hook, Verdict};

use crate::encap::{Error, encapsulate};
use crate::maps::{Maps, count};
use crate::refusal;
use crate::skb::Skb;

#[classifier]
pub fn ov_pod_in(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let bytes = skb.frame_len();
    let (verdict, action) = handle(&skb);
    count(Hook::PodIn, verdict, bytes);
    action
}

#[inline(always)]
fn handle(skb: &Skb) -> (Verdict, i32) {
    match from_pod(skb, &Maps) {
        FromPod::Redirect(pod) => {
            let ifindex = pod.ifindex;
            skb.take_in();
            // SAFETY: a tc ingress program may redirect to a veth peer.
            let action = unsafe { bpf_redirect_peer(ifindex, 0) };
            (Verdict::Redirected, action as i32)
        }
        FromPod::Encapsulate {
            config,
            peer,
            header,
            len,
            ecn,
        } => match encapsulate(skb, config, peer, header, len, ecn) {
            Ok(action) => (Verdict::Encapsulated, action),
            Err(Error::Untouched) => {
                skb.set_plain(true);
                (Verdict::AdjustFailed, TC_ACT_UNSPEC)
            }
            Err(Error::Changed) => (Verdict::Failed, TC_ACT_SHOT),
        },
        FromPod::Pass(pass) => {
            skb.set_plain(pass.plain);
            (pass.verdict, TC_ACT_UNSPEC)
        }
        FromPod::Refuse(verdict) => {
            refusal::tell(skb, Hook::PodIn, verdict);
            (verdict, TC_ACT_SHOT)
        }
    }
}
