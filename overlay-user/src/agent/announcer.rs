//! Publishes the state of this node for the cluster's owner, in a store that has a place for
//! notices: whether the node's network can be used, and the causes that stop pods or slow them
//! down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::health::{Progress, Report};
use crate::store::{Error, Notice, Store};

/// A fault is published only after this time, because the scheduler then stops sending pods to the
/// node.
const LASTING: Duration = Duration::from_secs(10);
/// Interval of further attempts after a failed notice, and of looks at a lasting fault.
const TICK: Duration = Duration::from_secs(5);
/// Shortest time between two events of one reason; the later one has the last message.
const SELDOM: Duration = Duration::from_secs(60);

/// The notices published so far.
#[derive(Debug, Default)]
struct Announced {
    /// The condition; none at the start.
    condition: Option<Notice>,
    /// A condition that is not published yet, and the time of its begin.
    pending: Option<(Notice, Instant)>,
    /// The last message of each kind of event, and when.
    events: BTreeMap<&'static str, (String, Instant)>,
}

/// Publishes notices until `cancel`; with `condition`, also whether the node's network can be used.
pub(super) async fn run(
    store: Arc<Store>,
    mut progress: watch::Receiver<Progress>,
    condition: bool,
    cancel: CancellationToken,
) {
    let mut told = Announced::default();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut may_post = true;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = progress.changed() => if changed.is_err() { return },
            _ = tick.tick() => {}
        }
        let now = progress.borrow_and_update().clone();
        if condition
            && let Some(notice) = told.next_condition(&now, Instant::now())
            && is_told(&store, &notice).await
        {
            told.condition = Some(notice);
        }
        if !may_post {
            continue;
        }
        for (reason, message) in told.next_events(&now, Instant::now()) {
            let notice = Notice::Event {
                reason,
                message: message.clone(),
            };
            match store.notify(&notice).await {
                Ok(()) => {
                    told.events.insert(reason, (message, Instant::now()));
                }
                // flannel's own ClusterRole does not allow it.
                Err(error @ Error::Refused { .. }) => {
                    tracing::info!(%error, "no events are posted");
                    may_post = false;
                    break;
                }
                Err(error) => tracing::debug!(%error, "an event is posted later"),
            }
        }
    }
}

async fn is_told(store: &Store, notice: &Notice) -> bool {
    let told = store.notify(notice).await;
    if let Err(error) = &told {
        tracing::debug!(%error, "the node's condition is told later");
    }
    told.is_ok()
}

impl Announced {
    /// The condition that is due.
    fn next_condition(&mut self, progress: &Progress, now: Instant) -> Option<Notice> {
        let wanted = condition(progress);
        if self.condition.as_ref() == Some(&wanted) {
            self.pending = None;
            return None;
        }
        if wanted == Notice::Available {
            self.pending = None;
            return Some(wanted);
        }
        // Another cause of the same fault does not begin anew.
        let since = self.pending.as_ref().map_or(now, |(_, since)| *since);
        self.pending = Some((wanted.clone(), since));
        let is_down = matches!(self.condition, Some(Notice::Unavailable { .. }));
        (is_down || now.duration_since(since) >= LASTING).then_some(wanted)
    }

    /// The events that are due.
    fn next_events(&mut self, progress: &Progress, now: Instant) -> Vec<(&'static str, String)> {
        let current = events(progress);
        // A cause that ends and recurs is published again.
        self.events.retain(|reason, (_, at)| {
            current.contains_key(reason) || now.duration_since(*at) < SELDOM
        });
        let is_new = |reason: &&'static str, message: &String| match self.events.get(reason) {
            None => true,
            Some((last, at)) => last != message && now.duration_since(*at) >= SELDOM,
        };
        current
            .into_iter()
            .filter(|(reason, message)| is_new(reason, message))
            .collect()
    }
}

/// Whether pods of this node can be reached, or why not.
fn condition(progress: &Progress) -> Notice {
    let (reason, message) = match &progress.report {
        None => ("OverlayIsStarting", &progress.waiting),
        Some(Report {
            hindrance: Some(why),
            ..
        }) => ("OverlayCannotCarry", why),
        Some(_) => return Notice::Available,
    };
    Notice::Unavailable {
        reason,
        message: message.clone(),
    }
}

/// The causes that stop pods or slow them down, by reason.
fn events(progress: &Progress) -> BTreeMap<&'static str, String> {
    let mut events = BTreeMap::new();
    let Some(report) = &progress.report else {
        if !progress.waiting.is_empty() {
            events.insert("OverlayIsWaiting", progress.waiting.clone());
        }
        return events;
    };
    if let Some(why) = &report.hindrance {
        events.insert("OverlayCannotCarry", why.clone());
    }
    if let Some(why) = report.fast_path_down() {
        events.insert("FastPathDown", why);
    }
    if let Some(note) = report.policies_note() {
        events.insert("NetworkPoliciesFound", note.to_owned());
    }
    let refused = report.rejected.sorted();
    if let Some(first) = refused.first() {
        let more = match refused.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        let message = format!("{}: {}{more}", first.subject, first.reason);
        events.insert("LeaseRefused", message);
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(text: &str) -> Progress {
        Progress {
            waiting: text.to_owned(),
            ..Progress::default()
        }
    }

    fn carries(hindrance: Option<&str>) -> Progress {
        let mut report = Report::default();
        if let Some(why) = hindrance {
            report.hinder("lease", why.to_owned());
        }
        Progress {
            report: Some(report),
            ..Progress::default()
        }
    }

    #[test]
    fn a_fault_is_told_when_it_lasts_and_its_end_at_once() {
        let mut told = Announced::default();
        let start = Instant::now();
        let down = waiting("node n1: no podCIDR yet");
        assert_eq!(told.next_condition(&down, start), None);
        let notice = told.next_condition(&down, start + LASTING).expect("told");
        assert!(
            matches!(&notice, Notice::Unavailable { message, .. } if message.contains("podCIDR"))
        );
        told.condition = Some(notice);
        assert_eq!(told.next_condition(&down, start + LASTING), None);
        let other = told.next_condition(&waiting("another cause"), start + LASTING);
        assert!(other.is_some(), "the node is down anyway");
        let up = told.next_condition(&carries(None), start + LASTING);
        assert_eq!(up, Some(Notice::Available));
        told.condition = up;
        let lost = carries(Some("the lease is lost"));
        assert_eq!(told.next_condition(&lost, start), None, "it may pass");
        assert!(told.next_condition(&lost, start + LASTING).is_some());
    }

    #[test]
    fn events_are_few() {
        let mut told = Announced::default();
        let start = Instant::now();
        let first = told.next_events(&waiting("one"), start);
        assert_eq!(first, [("OverlayIsWaiting", "one".to_owned())]);
        told.events
            .insert("OverlayIsWaiting", ("one".to_owned(), start));
        assert!(told.next_events(&waiting("one"), start + SELDOM).is_empty());
        assert!(told.next_events(&waiting("two"), start).is_empty());
        assert_eq!(told.next_events(&waiting("two"), start + SELDOM).len(), 1);
        assert!(told.next_events(&carries(None), start).is_empty());
    }
}
