//! The packet-filter set that guards the kernel path against forged sources.
//!
//! Two nftables tables of our own. They check what the eBPF programs check, on whatever those hand over
//! or never see: VXLAN that arrives in fragments, frames of pods before a program is attached. Only ports
//! of pods that the agent knows are guarded, so that a pod which it has yet to learn of is not cut off.

mod counters;
pub mod pod;
mod text;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::ToolError;
use super::dump::{Request, dump};
use super::tool::run;

pub use counters::{GuardCounters, Reason};

const NFT: &str = "nft";

/// The table that an object is in, an attribute of a request (`linux/netfilter/nf_tables.h`).
const NFTA_OBJ_TABLE: u16 = 1;

/// Name of our tables, one in the family `inet` and one in `bridge`.
pub const TABLE: &str = "overlay_guard";

/// What the guard knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardState {
    /// The whole overlay.
    pub network: Ipv4Net,
    /// The subnet of this node.
    pub own_subnet: Ipv4Net,
    /// The outer address of this node.
    pub own_vtep: Ipv4Addr,
    /// Name of the VXLAN device.
    pub vxlan: String,
    /// Name of the bridge of the pods.
    pub bridge: String,
    /// UDP port of VXLAN, host byte order.
    pub port: u16,
    /// Our VNI.
    pub vni: u32,
    /// VNIs of other devices that share the port; their packets are not ours to judge.
    pub other_vnis: BTreeSet<u32>,
    /// Outer address of every peer with a subnet that it may send from.
    pub peers: BTreeSet<(Ipv4Addr, Ipv4Net)>,
    /// Host device of every pod with an address that it may send from.
    pub pods: BTreeSet<(String, Ipv4Addr)>,
}

/// What can go wrong with the guard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This node cannot have a guard: no `nft`, or a kernel without one of the table families. The
    /// overlay works without; what the fast path hands over is then not checked.
    #[error("guard unavailable: {0}")]
    Unavailable(#[source] ToolError),
    /// `nft` did not do what it was asked to.
    #[error("guard: {0}")]
    Nft(#[source] ToolError),
    /// The kernel does not tell its counters.
    #[error("guard: read counters: {0}")]
    Counters(#[source] super::Error),
    /// The kernel does not take one pod's elements, or give them back.
    #[error("guard: write a pod's elements: {0}")]
    Pod(#[source] super::Error),
    /// There are no tables of ours.
    #[error(
        "guard: there is no table {}: no agent has made it, or somebody deleted it",
        TABLE
    )]
    Absent,
    /// A device whose name cannot be written in a rule.
    #[error("guard: device name {0:?} cannot be quoted for nft; rename the device")]
    Name(String),
}

impl Error {
    fn from_tool(error: ToolError) -> Self {
        // nft reports a missing family or expression with the errno of the transaction.
        const UNSUPPORTED: [&str; 3] = [
            "Operation not supported",
            "Protocol not supported",
            "Address family not supported",
        ];
        match &error {
            ToolError::Missing(_) => Self::Unavailable(error),
            ToolError::Failed { stderr, .. } if UNSUPPORTED.iter().any(|m| stderr.contains(m)) => {
                Self::Unavailable(error)
            }
            _ => Self::Nft(error),
        }
    }
}

/// Makes the kernel hold the guard for `state`, in one transaction: at no moment is a packet judged by
/// half a rule set. Counters keep counting. Applying the same state again changes nothing.
///
/// # Errors
/// [`Error::Unavailable`] where there can be no guard; otherwise what went wrong.
pub async fn apply(state: &GuardState) -> Result<(), Error> {
    let rules = text::render(state)?;
    let error = match run(NFT, &["-f", "-"], &rules).await {
        Ok(_) => return Ok(()),
        Err(error) => Error::from_tool(error),
    };
    if !matches!(error, Error::Nft(ToolError::Failed { .. })) {
        return Err(error);
    }
    // Tables that another version made may hold sets of other types, which cannot be changed.
    run(NFT, &["-f", "-"], &(text::removal() + &rules))
        .await
        .map_err(Error::from_tool)?;
    tracing::warn!("guard: tables made anew, counters start from zero: {error}");
    Ok(())
}

/// Reads how many packets were refused, by reason. Asks the kernel itself: whoever scrapes metrics should not have
/// two programs started each time.
///
/// # Errors
/// [`Error::Absent`], or what netlink says.
pub async fn counters() -> Result<GuardCounters, Error> {
    let mut counters = GuardCounters::default();
    for family in [NetfilterProtoFamily::Inet, NetfilterProtoFamily::Bridge] {
        let table = DefaultNla::new(NFTA_OBJ_TABLE, format!("{TABLE}\0").into_bytes());
        let request = NfTablesMessage::GetObject(vec![table]);
        let header = NetfilterHeader::new(family, 0, 0);
        let request = Request {
            protocol: NETLINK_NETFILTER,
            message: NetfilterMessage::new(header, request),
            call: "NFT_MSG_GETOBJ",
            object: TABLE,
        };
        let objects = dump(request, |answer: NetfilterMessage| match answer.inner {
            NetfilterMessageInner::NfTables(NfTablesMessage::NewObject(attributes)) => {
                Some(attributes)
            }
            _ => None,
        });
        for attributes in objects.await.map_err(Error::Counters)? {
            counters.read(&attributes);
        }
    }
    if counters.0.is_empty() {
        return Err(Error::Absent);
    }
    Ok(counters)
}

/// Removes the guard. Fine when there is none.
///
/// # Errors
/// [`Error::Unavailable`] where there can be no guard; otherwise what went wrong.
pub async fn cleanup() -> Result<(), Error> {
    run(NFT, &["-f", "-"], &text::removal())
        .await
        .map(drop)
        .map_err(Error::from_tool)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(stderr: &str) -> ToolError {
        ToolError::Failed {
            program: NFT,
            arguments: "-f -".into(),
            status: Some(1),
            stderr: stderr.into(),
        }
    }

    #[test]
    fn what_a_node_cannot_have_is_told_from_what_went_wrong() {
        let told = |error| matches!(Error::from_tool(error), Error::Unavailable(_));
        assert!(told(ToolError::Missing(NFT)));
        assert!(told(failed(
            "Error: Could not process rule: Operation not supported"
        )));
        assert!(!told(failed("Error: syntax error, unexpected newline")));
        let missing = Error::from_tool(ToolError::Missing(NFT)).to_string();
        assert!(
            missing.starts_with("guard unavailable: nft: program not found"),
            "{missing}"
        );
    }
}
