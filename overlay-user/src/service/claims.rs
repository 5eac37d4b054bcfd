//! Chooses among several Services that claim one frontend: the one with the stronger right, of
//! equals the older. So no Service takes another's address by naming that address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::judge::{Refusal, tell};
use super::name::ObjectName;
use super::offers::Rank;
use super::{Frontend, ServiceTable, Serving};

/// A Service's claim to a frontend, in the order of rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The right that the claim is based on.
    pub rank: Rank,
    /// When the Service was made.
    pub created: Arc<str>,
    /// The Service.
    pub name: ObjectName,
    /// The servers.
    pub serving: Arc<Serving>,
}

impl Claim {
    fn is_before(&self, other: &Self) -> bool {
        let right = (self.rank, &self.created, &self.name);
        right < (other.rank, &other.created, &other.name)
    }
}

/// All claims, and the table of the winning ones.
#[derive(Debug, Default)]
pub struct Claims {
    /// The holder first. Most often there is no other.
    by_frontend: HashMap<Frontend, Vec<Claim>>,
    table: ServiceTable,
    /// Frontends that each Service claims in vain, with the Service that has them.
    lost: HashMap<ObjectName, BTreeMap<Frontend, ObjectName>>,
}

impl Claims {
    /// The table of the winning claims.
    pub fn table(&self) -> &ServiceTable {
        &self.table
    }

    /// Adds a claim, in place of an earlier one of the same Service. Services whose claims win or
    /// lose because of the new claim are added to `changed`.
    pub fn put(&mut self, frontend: Frontend, claim: Claim, changed: &mut BTreeSet<ObjectName>) {
        let claims = self.by_frontend.entry(frontend).or_default();
        if claims.contains(&claim) {
            return;
        }
        claims.retain(|it| it.name != claim.name);
        let place = claims.iter().position(|it| claim.is_before(it));
        claims.insert(place.unwrap_or(claims.len()), claim);
        self.seat(frontend, changed);
    }

    /// Removes a claim.
    pub fn remove(
        &mut self,
        frontend: Frontend,
        name: &ObjectName,
        changed: &mut BTreeSet<ObjectName>,
    ) {
        if let Some(claims) = self.by_frontend.get_mut(&frontend) {
            claims.retain(|it| it.name != *name);
        }
        self.win(frontend, name, changed);
        self.seat(frontend, changed);
    }

    /// Adds a refusal to `told` for every frontend that a Service claims in vain.
    pub fn tell_lost(&self, name: &ObjectName, told: &mut Vec<Refusal>) {
        for (frontend, holder) in self.lost.get(name).into_iter().flatten() {
            tell(told, Refusal::Taken(*frontend, holder.clone()));
        }
    }

    /// Gives a frontend to the first of its claimants.
    fn seat(&mut self, frontend: Frontend, changed: &mut BTreeSet<ObjectName>) {
        let claims = self.by_frontend.remove(&frontend).unwrap_or_default();
        let Some((holder, others)) = claims.split_first() else {
            self.table.remove(&frontend);
            return;
        };
        self.table.insert(frontend, Arc::clone(&holder.serving));
        self.win(frontend, &holder.name, changed);
        for other in others {
            let lost = self.lost.entry(other.name.clone()).or_default();
            if lost.insert(frontend, holder.name.clone()).as_ref() != Some(&holder.name) {
                changed.insert(other.name.clone());
            }
        }
        self.by_frontend.insert(frontend, claims);
    }

    /// Notes that the Service does not claim the frontend in vain any more.
    fn win(&mut self, frontend: Frontend, name: &ObjectName, changed: &mut BTreeSet<ObjectName>) {
        let Some(lost) = self.lost.get_mut(name) else {
            return;
        };
        if lost.remove(&frontend).is_some() {
            changed.insert(name.clone());
        }
        if lost.is_empty() {
            self.lost.remove(name);
        }
    }
}
