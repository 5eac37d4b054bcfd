//! Begin and end of an outage of the store, and the leases in force meanwhile.

use std::time::SystemTime;

use tokio::time::Instant;

use super::{GRACE, Inner};
use crate::store::StoreHealth;
use crate::store::entry::EntryChange;

impl Inner {
    /// Notes that the store does not answer.
    pub(super) fn outage(&mut self, message: &str) {
        let since = match self.health {
            StoreHealth::Unreachable { since, .. } => since,
            _ => {
                tracing::warn!(
                    error = message,
                    "the store does not answer; known leases stay in force"
                );
                SystemTime::now()
            }
        };
        // What lingers from the last outage lingers through this one.
        self.grace = None;
        self.health = StoreHealth::Unreachable {
            since,
            error: message.to_owned(),
        };
    }

    /// Whether this node's lease is missing from a complete listing although the lease was renewed
    /// in time. Then the other nodes' leases have been lost in the same way, and their nodes need a
    /// moment to take them again.
    pub(super) fn has_ended_for(&self, change: &EntryChange) -> bool {
        match (&self.held, change) {
            (Some(held), EntryChange::All(listing)) if change.is_answer() => {
                held.revision <= listing.revision
                    && !listing.entries.iter().any(|entry| entry.key == held.key)
            }
            _ => false,
        }
    }

    /// Notes that the store answers. True if the store did not answer before.
    pub(super) fn answered(&mut self) -> bool {
        let before = std::mem::replace(&mut self.health, StoreHealth::Ok);
        let recovered = matches!(before, StoreHealth::Unreachable { .. });
        if recovered {
            tracing::info!("the store answers again");
            self.grace = Some(Instant::now() + GRACE);
        }
        recovered
    }
}
