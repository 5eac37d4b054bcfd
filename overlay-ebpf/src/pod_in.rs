//! tc ingress of a pod's host veth: packets from the pod.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::bpf_redirect_peer;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlay_common::decide::{FromPod, from_pod};
use overlay_common::packet::{ETHERNET_LEN, Packet as _};
use overlay_common::{Hook, Verdict};

use crate::disposition::{Disposition, end};
use crate::encap::encapsulate;
use crate::forward::{Error, route};
use crate::maps::{Mapped, Maps, Served};
use crate::skb::Skb;

#[classifier]
pub fn ov_pod_in(ctx: TcContext) -> i32 {
    handle::<Served>(&Skb::new(&ctx))
}

#[inline(always)]
fn handle<F: Mapped>(skb: &Skb) -> i32 {
    let bytes = skb.frame_len();
    end::<F>(skb, Hook::PodIn, bytes, visit::<F>(skb))
}

#[inline(always)]
fn visit<F: Mapped>(skb: &Skb) -> (Verdict, Disposition) {
    match from_pod::<F, F, _, _>(skb, &Maps) {
        FromPod::Redirect(pod) => {
            let ifindex = pod.ifindex;
            skb.take_in();
            // SAFETY: a tc ingress program may redirect to a veth peer.
            let action = unsafe { bpf_redirect_peer(ifindex, 0) };
            (Verdict::Redirected, Disposition::Done(action as i32))
        }
        FromPod::Encapsulate {
            config,
            peer,
            header,
            len,
            ecn,
        } => match encapsulate(skb, config, peer, header, len, ecn) {
            Ok(action) => (Verdict::Encapsulated, Disposition::Done(action)),
            Err(Error::Untouched) => (
                Verdict::AdjustFailed,
                Disposition::HandOver(Some(ETHERNET_LEN)),
            ),
            Err(Error::Changed) => (Verdict::Failed, Disposition::Done(TC_ACT_SHOT)),
        },
        FromPod::Route {
            config,
            peer,
            header,
        } => match route(skb, config, peer, header) {
            Ok(action) => (Verdict::Routed, Disposition::Done(action)),
            Err(_) => (
                Verdict::AdjustFailed,
                Disposition::HandOver(Some(ETHERNET_LEN)),
            ),
        },
        FromPod::Pass(pass) => Disposition::pass(pass),
        FromPod::Refuse(verdict) => (verdict, Disposition::Refused),
    }
}
