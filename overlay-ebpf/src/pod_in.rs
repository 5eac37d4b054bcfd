//! tc ingress of a pod's host veth: what the pod sends.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_redirect_peer;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{FromPod, from_pod};
use overlay_common::packet::{ETHERNET_LEN, Packet as _};
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
    let (verdict, plain) = match from_pod(skb, &Maps) {
        FromPod::Redirect(pod) => {
            let ifindex = pod.ifindex;
            skb.take_in();
            // SAFETY: a tc ingress program may redirect to a veth peer.
            let action = unsafe { bpf_redirect_peer(ifindex, 0) };
            return (Verdict::Redirected, action as i32);
        }
        FromPod::Encapsulate {
            config,
            peer,
            header,
            len,
            ecn,
        } => match encapsulate(skb, config, peer, header, len, ecn) {
            Ok(action) => return (Verdict::Encapsulated, action),
            Err(Error::Untouched) => (Verdict::AdjustFailed, Some(ETHERNET_LEN)),
            Err(Error::Changed) => return (Verdict::Failed, TC_ACT_SHOT as i32),
        },
        FromPod::Pass(pass) => (pass.verdict, pass.plain),
        FromPod::Refuse(verdict) => {
            refusal::tell(skb, Hook::PodIn, verdict);
            return (verdict, TC_ACT_SHOT as i32);
        }
    };
    skb.hand_over(plain);
    (verdict, TC_ACT_UNSPEC)
}
