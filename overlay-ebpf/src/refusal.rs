//! Telling the agent whose packets are refused, where it asks (`overlayd --log-refused`).

use aya_log_ebpf::warn;
use overlay_common::packet::{ETHERNET_LEN, Packet};
use overlay_common::{Family as _, Hook, V4, Verdict};

/// Writes a record for `overlay_user::datapath::refusals`: numbers of hook, verdict and interface, and the outermost addresses.
///
/// `AYA_LOG_LEVEL` is a constant to the verifier: where nobody asks, none of this is walked or run.
#[inline(always)]
pub fn tell<P: Packet>(packet: &P, hook: Hook, verdict: Verdict) {
    // The macro asks for a context and uses none.
    warn!(
        packet,
        "{} {} {} {:i} {:i}",
        hook as u32,
        verdict as u32,
        packet.ifindex(),
        addresses(packet).0,
        addresses(packet).1
    );
}

/// Sender and receiver of the IP header behind Ethernet; zeros where there is none, as with ARP.
#[inline(always)]
fn addresses<P: Packet>(packet: &P) -> (u32, u32) {
    V4::parse(packet, ETHERNET_LEN).map_or((0, 0), |ip| {
        (V4::number(ip.source), V4::number(ip.destination))
    })
}
