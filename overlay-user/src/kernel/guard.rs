//! The packet-filter set that guards the kernel path against forged sources.
//!
//! Two nftables tables of our own. They make the checks of the eBPF programs, on packets that the
//! programs hand over or never see: VXLAN that arrives in fragments, in IPsec, or by another
//! device; frames of pods before a program is attached. Frames that programs judge are left out.
//! Only ports of pods that the agent knows are guarded, so that a pod which the agent has not
//! learned of yet is not cut off.
//!
//! `nft` writes rules, which is rare; elements of sets are added and removed natively, by netlink.
//! A foreign change of the tables shows in the generation of the rule set, because every
//! transaction increases the generation.

mod counters;
mod netlink;
pub mod pod;
mod state;
mod text;

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::ToolError;
use super::dump::{Request, dump};
use super::nftables::generation;
use super::tool::run;
use crate::marks::GUARD_TABLE as TABLE;
use netlink::Fingerprint;
use state::{Delta, Elements, Set, SetContents, Shape};

pub use counters::{GuardCounters, Reason};
pub use state::{GuardState, Sources};

const NFT: &str = "nft";

/// Attribute of a request: the table of an object (`linux/netfilter/nf_tables.h`).
const NFTA_OBJ_TABLE: u16 = 1;

/// Most elements that one native transaction changes; `nft` writes more elements than that, because
/// `nft` enlarges the buffer of its socket for them.
const BULK: usize = 1000;
/// Number of attempts while others make transactions all the time.
const ATTEMPTS: usize = 3;
/// Shortest time between two reads of all elements, which follow foreign transactions.
const FULL_LOOK: Duration = Duration::from_secs(600);

/// The errors of the guard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This node cannot have a guard: no `nft`, or a kernel without one of the table families. The
    /// overlay works without a guard; the packets that the fast path hands over are then not
    /// checked.
    #[error("guard unavailable: {0}")]
    Unavailable(#[source] ToolError),
    /// `nft` failed.
    #[error("guard: {0}")]
    Nft(#[source] ToolError),
    /// The kernel's counters cannot be read.
    #[error("guard: read counters: {0}")]
    Counters(#[source] super::Error),
    /// A request by netlink failed.
    #[error("guard: {0}")]
    Netlink(#[from] super::Error),
    /// The tables of the guard do not exist.
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

/// The changes that [`Guard::apply`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardChange {
    /// No change.
    None,
    /// So many elements were added or removed natively.
    Elements(usize),
    /// `nft` wrote the tables anew.
    Whole,
}

/// The guard as this process has written it.
#[derive(Debug, Default)]
pub struct Guard {
    written: Option<Written>,
}

#[derive(Debug)]
struct Written {
    shape: Shape,
    contents: SetContents,
    /// The prefix lengths that have sets and rules.
    lengths: BTreeSet<u8>,
    fingerprint: Fingerprint,
    /// The rule set's generation as of our last transaction or look.
    generation: Option<u32>,
    /// The time of the last look at which every element was in place.
    looked: Instant,
    /// The time of the last statement that the list of leases is up to date.
    kept: Instant,
}

impl Guard {
    /// A guard that has written no tables yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the kernel hold the guard for `state`, in one transaction, so that at no moment a
    /// packet is judged by half a rule set. Counters keep their values. Applying the same state
    /// again changes nothing, and starts no program, unless a foreign transaction has changed the
    /// tables.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where there can be no guard; otherwise the error that occurred.
    pub async fn apply(&mut self, state: &GuardState) -> Result<GuardChange, Error> {
        let (shape, contents) = (state.shape(), state.contents());
        for _ in 0..ATTEMPTS {
            if !self.is_intact().await? {
                break;
            }
            let Some(written) = self.written.as_mut().filter(|it| it.shape == shape) else {
                break;
            };
            let delta = Delta::between(&written.contents, &contents);
            if !state::lengths(&delta.added).all(|length| written.lengths.contains(&length)) {
                break;
            }
            match delta.len() {
                0 => {
                    written.contents = contents;
                    return Ok(GuardChange::None);
                }
                few if few <= BULK => match netlink::change(&delta, written.generation).await {
                    Ok(()) => {
                        written.contents = contents;
                        written.generation = written.generation.map(after);
                        return Ok(GuardChange::Elements(few));
                    }
                    Err(error) if is_overtaken(&error) => {}
                    Err(error) if error.errno() == Some(nix::libc::ENOENT) => {
                        written.look_at_pods().await?;
                    }
                    Err(error) => {
                        tracing::debug!("guard: change elements: {error}");
                        break;
                    }
                },
                _ => break,
            }
        }
        self.write(state, shape, contents).await?;
        Ok(GuardChange::Whole)
    }

    /// Whether the kernel still holds the tables as last written. The check costs one request as
    /// long as no transaction was made in nftables.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn is_intact(&mut self) -> Result<bool, Error> {
        let Some(written) = &mut self.written else {
            return Ok(false);
        };
        let generation = generation().await?;
        if generation == written.generation {
            return Ok(true);
        }
        let mut is_intact = netlink::fingerprint().await? == written.fingerprint;
        if is_intact && written.looked.elapsed() >= FULL_LOOK {
            is_intact = written.holds_its_elements().await?;
            written.looked = Instant::now();
        }
        if is_intact {
            written.generation = generation;
        } else {
            tracing::warn!("somebody else has changed the tables {TABLE}");
            self.written = None;
        }
        Ok(is_intact)
    }

    /// States that the list of leases is up to date. To be called often; acts ten times in the
    /// period after which the rules do not trust the list any more.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn renew(&mut self) -> Result<(), Error> {
        let Some(written) = &mut self.written else {
            return Ok(());
        };
        let Shape { port, lapse, .. } = written.shape;
        if written.shape.vxlan.is_none() {
            return Ok(());
        }
        if written.kept.elapsed() >= lapse / 10 {
            // The authors of these transactions are not known before the next look.
            netlink::keep(port, lapse).await?;
            written.kept = Instant::now();
        }
        Ok(())
    }

    async fn write(
        &mut self,
        state: &GuardState,
        shape: Shape,
        contents: SetContents,
    ) -> Result<(), Error> {
        for device in state.unnameable() {
            tracing::warn!(device, "the guard cannot name this device: rename it");
        }
        let before = counters().await.unwrap_or_default();
        let elements = contents.elements(&shape);
        let rules = text::render(&shape, &elements, &before)?;
        self.written = None;
        let kept = Instant::now();
        run(NFT, &["-f", "-"], &rules)
            .await
            .map_err(Error::from_tool)?;
        // The order matters: a transaction in between shows as another generation.
        let generation = generation().await?;
        let fingerprint = netlink::fingerprint().await?;
        if fingerprint.is_empty() {
            return Err(Error::Absent);
        }
        self.written = Some(Written {
            shape,
            contents,
            lengths: state::lengths(&elements).collect(),
            fingerprint,
            generation,
            looked: Instant::now(),
            kept,
        });
        Ok(())
    }
}

impl Written {
    async fn holds_its_elements(&self) -> Result<bool, Error> {
        let elements: Elements = self.contents.elements(&self.shape);
        let sources = self.lengths.iter().copied().map(Set::Sources);
        let tunnel = [Set::Vteps, Set::Nodes].into_iter().chain(sources);
        let tunnel = tunnel.filter(|_| self.shape.vxlan.is_some());
        for set in [Set::Ports, Set::Pods].into_iter().chain(tunnel) {
            let wanted = elements.get(&set).into_iter().flatten();
            if netlink::keys(set).await? != wanted.map(state::Element::key).collect() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Notes which pods are still in the sets, because the CNI plugin removes the pods that it
    /// deletes.
    async fn look_at_pods(&mut self) -> Result<(), Error> {
        for set in [Set::Ports, Set::Pods] {
            let there = netlink::keys(set).await?;
            self.contents.keep(set, &there);
        }
        Ok(())
    }
}

/// The generation after one more transaction: zero is left out (`nf_tables_commit()`).
fn after(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// Whether others have made a transaction in between.
fn is_overtaken(error: &super::Error) -> bool {
    matches!(error, super::Error::Refused { source, .. }
        if source.raw_os_error() == Some(nix::libc::ERESTART)
            || source.kind() == io::ErrorKind::Interrupted)
}

/// Reads the numbers of refused packets by reason. The counters are read from the kernel by
/// netlink, because a scrape of metrics should not start two programs each time.
///
/// # Errors
/// [`Error::Absent`], or the error from netlink.
pub async fn counters() -> Result<GuardCounters, Error> {
    let mut counters = GuardCounters::default();
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::Bridge] {
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

/// Removes the guard. A missing guard is no error.
///
/// # Errors
/// [`Error::Unavailable`] where there can be no guard; otherwise the error that occurred.
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

    #[test]
    fn generations_count_on_past_zero() {
        assert_eq!((after(7), after(u32::MAX)), (8, 1));
    }
}
