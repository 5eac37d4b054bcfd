//! All Services and EndpointSlices of a registry, and the table made of them.
//!
//! A change of one slice costs work for its Service only: the affected Services are marked, and
//! [`Catalog::settle`] computes the marked ones anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::claims::{Claim, Claims};
use super::judge::{Refusal, tell};
use super::name::{Kind, ObjectName, Subject};
use super::offers::{Offers, offers};
use super::spec::{Locality, Slice, Spec};
use super::{Frontend, ServiceTable, api};
use crate::per_family::PerFamily;
use crate::shared_map::SharedMap;

/// Refused parts of Services, by the object that contains them.
pub type Refusals = SharedMap<Subject, Arc<[Refusal]>>;

/// The objects known so far, and the table made of them.
#[derive(Debug)]
pub struct Catalog {
    here: Locality,
    services: HashMap<ObjectName, KnownService>,
    /// Slices, by their own names.
    slices: HashMap<ObjectName, ObjectName>,
    /// The Services that say a cluster IP is theirs.
    cluster_ips: HashMap<IpAddr, BTreeSet<ObjectName>>,
    /// The slices with servers that are no pods, by their addresses: only such an address can be a
    /// cluster IP.
    outside: HashMap<IpAddr, BTreeSet<ObjectName>>,
    /// Addresses of nodes, and how many leases say so.
    nodes: HashMap<IpAddr, usize>,
    claims: Claims,
    refused: Refusals,
    /// Services that have to be looked at.
    marked: BTreeSet<ObjectName>,
    /// Known objects that the list being read has not named yet.
    unlisted: HashMap<Kind, HashSet<ObjectName>>,
}

/// A Service, and slices of one that may not be known yet.
#[derive(Debug, Default)]
struct KnownService {
    spec: Option<Spec>,
    /// Refused parts of the Service object itself.
    refused: Vec<Refusal>,
    slices: BTreeMap<ObjectName, Slice>,
    /// Frontends that the Service offered when last settled.
    offered: Vec<Frontend>,
}

impl Catalog {
    /// An empty one, for this node.
    #[must_use]
    pub fn new(here: Locality) -> Self {
        Self {
            here,
            services: HashMap::new(),
            slices: HashMap::new(),
            cluster_ips: HashMap::new(),
            outside: HashMap::new(),
            nodes: HashMap::new(),
            claims: Claims::default(),
            refused: Refusals::default(),
            marked: BTreeSet::new(),
            unlisted: HashMap::new(),
        }
    }

    /// The table, as of the last [`Catalog::settle`].
    #[must_use]
    pub fn table(&self) -> &ServiceTable {
        self.claims.table()
    }

    /// Refused parts, as of the last [`Catalog::settle`].
    #[must_use]
    pub fn refused(&self) -> &Refusals {
        &self.refused
    }

    /// Begins a list of all objects of this kind.
    pub fn begin(&mut self, kind: Kind) {
        let known = match kind {
            Kind::Service => {
                let services = self.services.iter();
                let told = services.filter(|(_, it)| it.spec.is_some() || !it.refused.is_empty());
                told.map(|(name, _)| name.clone()).collect()
            }
            Kind::Slice => {
                let refused = self.refused.iter().map(|(subject, _)| subject);
                let refused = refused
                    .filter(|it| it.kind == Kind::Slice)
                    .map(|it| &it.name);
                self.slices.keys().chain(refused).cloned().collect()
            }
        };
        self.unlisted.insert(kind, known);
    }

    /// Ends the list, and removes the objects that were not in the list.
    pub fn complete(&mut self, kind: Kind) {
        for name in self.unlisted.remove(&kind).unwrap_or_default() {
            match kind {
                Kind::Service => self.remove_service(&name),
                Kind::Slice => self.remove_slice(&name),
            }
        }
    }

    /// Adds or replaces a Service, which is an error's text if the object could not be parsed.
    pub fn put_service(&mut self, name: &ObjectName, service: Result<&api::Service, String>) {
        self.listed(Kind::Service, name);
        let mut refused = Vec::new();
        let spec = match service {
            Ok(service) => Spec::new(&self.here, service, &mut refused),
            Err(why) => {
                refused.push(Refusal::Json(why));
                None
            }
        };
        self.set_service(name, spec, refused);
    }

    /// Removes a Service.
    pub fn remove_service(&mut self, name: &ObjectName) {
        self.listed(Kind::Service, name);
        self.set_service(name, None, Vec::new());
    }

    /// Adds or replaces an EndpointSlice, which is an error's text if the object could not be
    /// parsed.
    pub fn put_slice(&mut self, name: &ObjectName, slice: Result<&api::EndpointSlice, String>) {
        let mut refused = Vec::new();
        let slice = match slice {
            Ok(slice) => Slice::new(&self.here, slice, &mut refused),
            Err(why) => {
                refused.push(Refusal::Json(why));
                None
            }
        };
        let of = slice.as_ref().map(|slice| &slice.service);
        if self.slices.get(name) != of {
            self.remove_slice(name);
        }
        self.listed(Kind::Slice, name);
        self.refuse(Kind::Slice, name, refused);
        let Some(slice) = slice else { return };
        self.slices.insert(name.clone(), slice.service.clone());
        let known = self.services.entry(slice.service.clone()).or_default();
        if known.slices.get(name) == Some(&slice) {
            return;
        }
        self.marked.insert(slice.service.clone());
        let pods = &self.here.pods;
        let outside = |slice: &Slice| -> BTreeSet<IpAddr> {
            let addresses = slice.servers.iter().map(|it| it.address);
            addresses.filter(|it| !is_within(pods, *it)).collect()
        };
        let now = outside(&slice);
        let before = known.slices.insert(name.clone(), slice);
        let before = before.as_ref().map(outside).unwrap_or_default();
        for address in before.difference(&now) {
            forget(&mut self.outside, *address, name);
        }
        for address in now.difference(&before) {
            let slices = self.outside.entry(*address).or_default();
            slices.insert(name.clone());
        }
    }

    /// Removes an EndpointSlice.
    pub fn remove_slice(&mut self, name: &ObjectName) {
        self.listed(Kind::Slice, name);
        self.refuse(Kind::Slice, name, Vec::new());
        let Some(service) = self.slices.remove(name) else {
            return;
        };
        let known = self.services.get_mut(&service);
        let slice = known.and_then(|known| known.slices.remove(name));
        for server in slice.iter().flat_map(|slice| slice.servers.iter()) {
            forget(&mut self.outside, server.address, name);
        }
        self.marked.insert(service);
    }

    /// Notes that a lease names the address as a node's.
    pub fn add_node(&mut self, address: IpAddr) {
        let count = self.nodes.entry(address).or_default();
        *count += 1;
        if *count == 1 {
            self.mark_address(address);
        }
    }

    /// Notes that a lease does not name the address any more.
    pub fn remove_node(&mut self, address: IpAddr) {
        if let Some(count) = self.nodes.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.nodes.remove(&address);
                self.mark_address(address);
            }
        }
    }

    /// Updates the table by all changes since the last call.
    pub fn settle(&mut self) {
        let mut changed = BTreeSet::new();
        let mut found = BTreeMap::new();
        for name in std::mem::take(&mut self.marked) {
            let refused = self.settle_service(&name, &mut changed);
            found.insert(name, refused);
        }
        // A Service that lost a frontend to one of them, or got it back, may not be among them.
        for name in changed {
            let of = |service: &KnownService| self.offers_of(service).1;
            let refused = || self.services.get(&name).map(of).unwrap_or_default();
            found.entry(name.clone()).or_insert_with(refused);
        }
        for (name, mut refused) in found {
            self.claims.tell_lost(&name, &mut refused);
            self.refuse(Kind::Service, &name, refused);
            if self.services.get(&name).is_some_and(KnownService::is_empty) {
                self.services.remove(&name);
            }
        }
    }

    /// Claims the frontends that a Service offers, and removes its claims to others. Returns the
    /// refusals.
    fn settle_service(
        &mut self,
        name: &ObjectName,
        changed: &mut BTreeSet<ObjectName>,
    ) -> Vec<Refusal> {
        let Some(known) = self.services.get(name) else {
            return Vec::new();
        };
        let (offers, refused) = self.offers_of(known);
        let created = known.spec.as_ref().map(|spec| Arc::clone(&spec.created));
        let created = created.unwrap_or_default();
        for frontend in &known.offered {
            if !offers.contains_key(frontend) {
                self.claims.remove(*frontend, name, changed);
            }
        }
        let offered = offers.keys().copied().collect();
        for (frontend, (rank, serving)) in offers {
            let claim = Claim {
                rank,
                created: Arc::clone(&created),
                name: name.clone(),
                serving,
            };
            self.claims.put(frontend, claim, changed);
        }
        if let Some(known) = self.services.get_mut(name) {
            known.offered = offered;
        }
        refused
    }

    /// The frontends that a Service offers, and the refusals.
    fn offers_of(&self, known: &KnownService) -> (Offers, Vec<Refusal>) {
        let mut refused = known.refused.clone();
        let Some(spec) = &known.spec else {
            return (Offers::new(), refused);
        };
        let (own, nodes): (Vec<_>, Vec<_>) = spec
            .cluster_ips
            .iter()
            .partition(|address| !self.is_node(**address));
        for address in nodes {
            tell(&mut refused, Refusal::Node(address));
        }
        let slices = known.slices.values();
        let mut no_servers = BTreeMap::new();
        let addresses = slices.clone().flat_map(|slice| slice.servers.iter());
        for address in addresses.map(|server| server.address) {
            if let Some(service) = self.service_at(address) {
                no_servers.insert(address, service);
            }
        }
        for (address, service) in &no_servers {
            tell(&mut refused, Refusal::Service(*address, (*service).clone()));
        }
        let is_server = |address| !no_servers.contains_key(&address);
        let offers = offers(&self.here, spec, &own, slices, is_server, &mut refused);
        (offers, refused)
    }

    /// The Service that has the address as a cluster IP.
    fn service_at(&self, address: IpAddr) -> Option<&ObjectName> {
        let services = self.cluster_ips.get(&address)?;
        services.first().filter(|_| !self.is_node(address))
    }

    fn is_node(&self, address: IpAddr) -> bool {
        self.nodes.contains_key(&address) || self.here.addresses.contains(&address)
    }

    fn set_service(&mut self, name: &ObjectName, spec: Option<Spec>, refused: Vec<Refusal>) {
        let known = self.services.entry(name.clone()).or_default();
        let addresses = |spec: &Option<Spec>| -> BTreeSet<IpAddr> {
            let addresses = spec.iter().flat_map(|it| it.cluster_ips.iter());
            addresses.copied().collect()
        };
        let (before, now) = (addresses(&known.spec), addresses(&spec));
        (known.spec, known.refused) = (spec, refused);
        self.marked.insert(name.clone());
        for address in before.difference(&now) {
            forget(&mut self.cluster_ips, *address, name);
            self.mark_address(*address);
        }
        for address in now.difference(&before) {
            let services = self.cluster_ips.entry(*address).or_default();
            services.insert(name.clone());
            self.mark_address(*address);
        }
    }

    /// Marks the Services that depend on the owner of an address.
    fn mark_address(&mut self, address: IpAddr) {
        let claimants = self.cluster_ips.get(&address).into_iter().flatten();
        self.marked.extend(claimants.cloned());
        let slices = self.outside.get(&address).into_iter().flatten();
        let services = slices.filter_map(|slice| self.slices.get(slice));
        self.marked.extend(services.cloned());
    }

    fn listed(&mut self, kind: Kind, name: &ObjectName) {
        if let Some(unlisted) = self.unlisted.get_mut(&kind) {
            unlisted.remove(name);
        }
    }

    fn refuse(&mut self, kind: Kind, name: &ObjectName, refused: Vec<Refusal>) {
        let subject = Subject {
            kind,
            name: name.clone(),
        };
        if refused.is_empty() {
            self.refused.remove(&subject);
        } else {
            self.refused.insert(subject, refused.into());
        }
    }
}

impl KnownService {
    fn is_empty(&self) -> bool {
        self.spec.is_none() && self.refused.is_empty() && self.slices.is_empty()
    }
}

fn is_within(networks: &PerFamily<IpNet>, address: IpAddr) -> bool {
    let network = networks.like(address);
    network.is_some_and(|network| network.contains(&address))
}

/// Takes a name from those of an address.
fn forget(names: &mut HashMap<IpAddr, BTreeSet<ObjectName>>, address: IpAddr, name: &ObjectName) {
    if let Some(known) = names.get_mut(&address) {
        known.remove(name);
        if known.is_empty() {
            names.remove(&address);
        }
    }
}
