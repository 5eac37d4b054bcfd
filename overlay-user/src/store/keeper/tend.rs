//! Comparing this node's lease with what it should be, and mending the difference.

use super::claim::value;
use super::{Inner, Store, Wanted};
use crate::lease::Attributes;
use crate::store::Error;
use crate::store::entry::{Entry, Term};
use crate::store::registry::Registry;

/// How the store's entry relates to what this node holds.
enum Finding {
    /// As wanted.
    Right,
    /// Ours, but with another value or bound to another etcd lease.
    Changed,
    /// Removed, or another node's.
    Lost(&'static str),
}

impl Store {
    /// Repairs this node's lease where necessary, and renews the lease if `renew`. True if anything
    /// but the term had to change.
    pub(super) async fn tend(
        &self,
        inner: &mut Inner,
        wanted: &Wanted,
        renew: bool,
    ) -> Result<bool, Error> {
        let Some(held) = inner.held.clone() else {
            self.claim(inner, wanted, wanted.previous).await?;
            return Ok(true);
        };
        let current = inner.table.get(&held.key).unwrap_or(&held);
        let value = value(wanted, current)?;
        match find(inner, &held, wanted, &value) {
            Finding::Right => {}
            Finding::Lost(how) => return self.claim_again(inner, wanted, &held, how).await,
            Finding::Changed => {
                let current = inner.table.get(&held.key).cloned().unwrap_or(held.clone());
                if current.value != held.value {
                    tracing::warn!(
                        key = held.key,
                        "somebody changed this node's lease; if this goes on, another node has the \
                        same public IP: give each its own by --public-ip or --iface"
                    );
                }
                return match self.registry.replace(&current, &value).await? {
                    Some(entry) => {
                        tracing::info!(key = entry.key, "published this node's attributes");
                        self.hold(inner, entry);
                        Ok(true)
                    }
                    None => {
                        self.claim_again(inner, wanted, &held, "it changed meanwhile")
                            .await
                    }
                };
            }
        }
        if renew {
            if !self.registry.renew(&held).await? {
                return self
                    .claim_again(inner, wanted, &held, "its term ended")
                    .await;
            }
            if held.term != Term::Reserved {
                inner.expires = Registry::term_end(self.ttl);
            }
            if !self.registry.assigns() {
                inner.answered();
            }
        }
        Ok(false)
    }

    /// Takes the same subnet if it is free, else another.
    async fn claim_again(
        &self,
        inner: &mut Inner,
        wanted: &Wanted,
        held: &Entry,
        how: &str,
    ) -> Result<bool, Error> {
        tracing::warn!(
            key = held.key,
            how,
            "this node's lease is lost; taking it again, or another"
        );
        inner.table.forget(&held.key);
        let previous = held
            .lease()
            .ok()
            .map(|lease| lease.subnets)
            .or(wanted.previous);
        self.claim(inner, wanted, previous).await?;
        Ok(true)
    }
}

fn find(inner: &mut Inner, held: &Entry, wanted: &Wanted, value: &str) -> Finding {
    let Some(current) = inner.table.get(&held.key).cloned() else {
        return Finding::Lost("its entry is gone");
    };
    let attributes = |entry: &Entry| entry.lease().ok().map(|lease| lease.attributes);
    let theirs = attributes(&current);
    let is_at =
        |own: &Attributes| (theirs.as_ref()).is_some_and(|theirs| theirs.is_at(&own.public_ip));
    let is_own = is_at(&wanted.attributes) || attributes(held).is_some_and(|own| is_at(&own));
    if current.node != held.node || !is_own {
        return Finding::Lost("another node has written over it");
    }
    if current.value != value.as_bytes() || current.term != held.term {
        return Finding::Changed;
    }
    // Written again as it was, or simply read again: the next guarded write must name this
    // revision.
    inner.held = Some(current);
    Finding::Right
}
