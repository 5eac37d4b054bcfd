//! The counters of a node's fast path, as reported by `overlayctl status`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Sub;
use std::time::Duration;

use anyhow::{Context as _, Result};
use overlay_common::verdict::Verdict;
use serde::Serialize;
use serde_json::Value;

use crate::{Lab, Node, wait_until};

/// Longest time until an agent accelerates a new pod.
const NOTICED: Duration = Duration::from_secs(10);

/// Packets by verdict, or the difference of two such counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Packets handed to a pod of the node, from another pod of the node or unencapsulated from a
    /// node on the link.
    pub redirected: u64,
    /// Packets sent to another node on the link without encapsulation.
    pub routed: u64,
    /// Encapsulated.
    pub encapsulated: u64,
    /// Decapsulated.
    pub decapsulated: u64,
    /// Left to the kernel, by cause.
    pub slow: BTreeMap<String, u64>,
}

impl Counts {
    /// The counts of `node`'s programs since they were loaded.
    ///
    /// # Errors
    /// When `overlayctl` fails.
    pub fn of(node: &Node) -> Result<Self> {
        Self::told(&status(node)?).with_context(|| format!("the status of {}", node.name()))
    }

    /// The counts in a status of `overlayctl`.
    ///
    /// # Errors
    /// When a field is missing.
    pub fn told(status: &Value) -> Result<Self> {
        let fast_path = &status["fast_path"];
        let number = |key: &str| {
            let number = fast_path[key].as_u64();
            number.with_context(|| format!("no fast_path.{key}"))
        };
        let slow = status["slow_path"].as_object().context("no slow_path")?;
        Ok(Self {
            redirected: number("redirected")?,
            routed: number("routed")?,
            encapsulated: number("encapsulated")?,
            decapsulated: number("decapsulated")?,
            slow: slow
                .iter()
                .map(|(cause, packets)| {
                    let packets = packets.as_u64();
                    Ok((
                        cause.clone(),
                        packets.with_context(|| format!("no number of {cause}"))?,
                    ))
                })
                .collect::<Result<_>>()?,
        })
    }

    /// Packets that took the fast path.
    pub fn fast(&self) -> u64 {
        self.redirected + self.routed + self.encapsulated + self.decapsulated
    }

    /// Packets left to the kernel for this cause.
    ///
    /// # Panics
    /// When there is no such cause.
    pub fn slow(&self, cause: &str) -> u64 {
        assert!(
            Verdict::ALL.iter().any(|known| known.name() == cause),
            "there is no cause {cause}"
        );
        self.slow.get(cause).copied().unwrap_or_default()
    }

    /// Share of the fast path, leaving out packets that were left to the kernel for one of
    /// `causes`.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn hit_ratio_without(&self, causes: &[&str]) -> f64 {
        let slow = self
            .slow
            .iter()
            .filter(|(cause, _)| !causes.contains(&cause.as_str()));
        let slow: u64 = slow.map(|(_, packets)| packets).sum();
        self.fast() as f64 / (self.fast() + slow).max(1) as f64
    }

    /// The packets left to the kernel, highest count first, as text for people.
    pub fn left_to_kernel(&self) -> String {
        let mut causes: Vec<_> = self
            .slow
            .iter()
            .filter(|(_, packets)| **packets > 0)
            .collect();
        causes.sort_by_key(|(_, packets)| Reverse(**packets));
        let causes: Vec<_> = causes
            .iter()
            .map(|(cause, packets)| format!("{packets} {cause}"))
            .collect();
        if causes.is_empty() {
            "nothing".to_owned()
        } else {
            causes.join(", ")
        }
    }
}

impl Sub for &Counts {
    type Output = Counts;

    fn sub(self, earlier: Self) -> Counts {
        let slow = self.slow.iter().map(|(cause, packets)| {
            let packets = packets.saturating_sub(earlier.slow(cause));
            (cause.clone(), packets)
        });
        Counts {
            redirected: self.redirected.saturating_sub(earlier.redirected),
            routed: self.routed.saturating_sub(earlier.routed),
            encapsulated: self.encapsulated.saturating_sub(earlier.encapsulated),
            decapsulated: self.decapsulated.saturating_sub(earlier.decapsulated),
            slow: slow.filter(|(_, packets)| *packets > 0).collect(),
        }
    }
}

/// The output of `overlayctl status` on a node, as JSON.
///
/// # Errors
/// When `overlayctl` fails.
pub fn status(node: &Node) -> Result<Value> {
    node.json(["overlayctl", "status", "--output", "json"])
}

/// Waits until every pod of the lab is accelerated, and the fast path of every node knows every
/// node that the kernel has a route to, because the route comes first.
///
/// # Errors
/// When that takes too long.
pub fn wait_accelerated(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let what = format!("the fast path of {} to know every node", node.name());
        let is_complete = |status: Value| status["fast_path"]["complete"] == true;
        wait_until(&what, NOTICED, || status(&node).is_ok_and(is_complete))
            .with_context(|| node.agent_log_tail())?;
    }
    lab.pods()
        .iter()
        .try_for_each(|pod| wait_for_path(&pod.node(), &pod.address().to_string(), "fast"))
}

/// Waits until the pod with this address takes `path` (`fast` or `kernel`).
///
/// # Errors
/// When that takes too long.
pub fn wait_for_path(node: &Node, address: &str, path: &str) -> Result<()> {
    let what = format!("{address} on {} to take the {path} path", node.name());
    let is_on_it = |status: Value| {
        let pods = status["pods"].as_array().into_iter().flatten();
        pods.filter(|pod| pod["address"] == address)
            .any(|pod| pod["path"] == path)
    };
    wait_until(&what, NOTICED, || status(node).is_ok_and(is_on_it))
        .with_context(|| node.agent_log_tail())
}
