//! Which node holds which subnet, and the keeper's news when a Node changes: pure.
//!
//! The keeper knows entries by their subnets, and two Nodes may claim one subnet. Then the older
//! Node holds the subnet; the others are refused, under a key that is their name.

use std::collections::HashMap;
use std::net::IpAddr;

use super::node::{Names, Node};
use crate::lease::{RejectReason, SubnetKey};
use crate::store::entry::{Entry, EntryChange, Listing, Term};
use crate::store::news::ThisNode;

/// The Nodes that take part in the overlay.
#[derive(Debug)]
pub(super) struct Nodes {
    names: Names,
    /// This node's name.
    own: String,
    /// The address that an operator sets as this node's own.
    node_public_ip: Option<IpAddr>,
    /// The place of this node.
    this_node: Option<ThisNode>,
    known: HashMap<String, KnownNode>,
    /// The names of the nodes that claim a subnet, the holder first. Most often there is one name.
    claims: HashMap<SubnetKey, Vec<String>>,
}

#[derive(Clone, Debug, PartialEq)]
struct KnownNode {
    created: String,
    /// `None` where the Node's podCIDRs cannot be used; the entry has the reason.
    key: Option<SubnetKey>,
    /// The node's entry if no other node claimed the subnet.
    entry: Entry,
}

impl Nodes {
    pub fn new(names: Names, own: String) -> Self {
        let (known, claims) = Default::default();
        Self {
            names,
            own,
            node_public_ip: None,
            this_node: None,
            known,
            claims,
        }
    }

    /// Removes all Nodes, before a full list is [`put`](Self::put).
    pub fn clear(&mut self) {
        self.known.clear();
        self.claims.clear();
    }

    /// All entries, at the server's count `revision`.
    pub fn listing(&self, revision: u64) -> Listing {
        let entries = self.known.keys().map(|name| self.shown(name));
        Listing {
            entries: entries.collect(),
            revision,
            as_of: None,
        }
    }

    /// This node's name.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// The address that an operator sets as this node's own.
    pub fn node_public_ip(&self) -> Option<IpAddr> {
        self.node_public_ip
    }

    /// The place of this node, once its Node has been seen.
    pub fn this_node(&self) -> Option<&ThisNode> {
        self.this_node.as_ref()
    }

    /// The older node that also claims this node's subnet.
    pub fn rival(&self) -> Option<&str> {
        let key = self.known.get(&self.own)?.key?;
        let holder = self.claims.get(&key)?.first()?;
        (*holder != self.own).then_some(holder)
    }

    /// Takes in a Node. Returns the changes of entries; most often there are none, because a
    /// kubelet reports its health in the same object.
    pub fn put(&mut self, node: &Node) -> Vec<EntryChange> {
        let name = &node.metadata.name;
        if *name == self.own {
            self.node_public_ip = node.node_public_ip(&self.names);
            self.this_node = Some(node.this_node());
        }
        if !node.is_member(&self.names) {
            return self.remove(name, node.revision());
        }
        let now = self.read(node);
        let same = |known: &KnownNode| {
            // A new revision alone is no change.
            let revision = known.entry.revision;
            let entry = Entry {
                revision,
                ..now.entry.clone()
            };
            *known
                == KnownNode {
                    entry,
                    ..now.clone()
                }
        };
        if self.known.get(name).is_some_and(same) {
            return Vec::new();
        }
        let mut changes = match self.known.get(name) {
            Some(known) if known.key != now.key || known.created != now.created => {
                self.remove(name, node.revision())
            }
            _ => Vec::new(),
        };
        if let Some(key) = now.key {
            let alone = || Vec::with_capacity(1);
            let claims = self.claims.entry(key).or_insert_with(alone);
            if !claims.contains(name) {
                claims.push(name.clone());
            }
        }
        let key = now.key;
        self.known.insert(name.clone(), now);
        match key {
            Some(key) => changes.extend(self.settle(&key, node.revision())),
            None => changes.push(EntryChange::Put(self.shown(name))),
        }
        changes
    }

    /// Removes a Node that was deleted, or does not take part any more.
    pub fn remove(&mut self, name: &str, revision: u64) -> Vec<EntryChange> {
        let Some(known) = self.known.remove(name) else {
            return Vec::new();
        };
        let gone = |key| EntryChange::Gone { key, revision };
        let Some(key) = known.key else {
            return vec![gone(known.entry.key)];
        };
        let mut changes = Vec::new();
        if let Some(claims) = self.claims.get_mut(&key) {
            if claims.first().is_some_and(|holder| holder != name) {
                changes.push(gone(refused_key(name)));
            }
            claims.retain(|claimant| claimant != name);
            if claims.is_empty() {
                self.claims.remove(&key);
                changes.push(gone(known.entry.key));
            }
        }
        changes.extend(self.settle(&key, revision));
        changes
    }

    fn read(&self, node: &Node) -> KnownNode {
        let name = &node.metadata.name;
        let is_own = *name == self.own;
        let (key, refused) = match node.subnet() {
            Ok(Some(key)) => (Some(key), None),
            Ok(None) => (None, Some("it has no podCIDR".to_owned())),
            Err(wrong) => (None, Some(wrong)),
        };
        let text = key.map_or_else(|| refused_key(name), |key| key.to_string());
        let entry = node.entry(&self.names, text, is_own);
        KnownNode {
            created: node.created().to_owned(),
            key,
            entry: Entry {
                refused: refused.map(RejectReason::PodCidr),
                ..entry
            },
        }
    }

    /// Decides anew which claimant holds a subnet, and returns the entries of all claimants. Their
    /// revision is that of the present change, because a holder that existed before must not seem
    /// older than a removed one.
    fn settle(&mut self, key: &SubnetKey, revision: u64) -> Vec<EntryChange> {
        let Self { known, claims, .. } = self;
        let Some(claims) = claims.get_mut(key) else {
            return Vec::new();
        };
        if claims.len() > 1 {
            let age = |name: &String| known.get(name).map(|known| known.created.clone());
            claims.sort_by_key(|name| (age(name), name.clone()));
        }
        let mut changes = Vec::new();
        let claims = claims.clone();
        for name in &claims {
            let entry = Entry {
                revision,
                ..self.shown(name)
            };
            let holds = entry.refused.is_none();
            changes.push(EntryChange::Put(entry));
            if holds {
                let key = refused_key(name);
                changes.push(EntryChange::Gone { key, revision });
            }
        }
        changes
    }

    /// The present entry of a known node for the keeper.
    fn shown(&self, name: &str) -> Entry {
        let Some(known) = self.known.get(name) else {
            return Entry::new(refused_key(name), "", 0, Term::Reserved);
        };
        let holder = known
            .key
            .and_then(|key| self.claims.get(&key)?.first())
            .filter(|holder| *holder != name);
        match holder {
            None => known.entry.clone(),
            Some(holder) => Entry {
                key: refused_key(name),
                refused: Some(RejectReason::PodCidr(format!(
                    "its podCIDR is that of the older node {holder}"
                ))),
                ..known.entry.clone()
            },
        }
    }
}

/// The key of a node that holds no subnet. Such a key is never that of a subnet.
fn refused_key(name: &str) -> String {
    format!("node {name}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::table::Table;

    fn nodes() -> Nodes {
        let names = Names::new("flannel.alpha.coreos.com").expect("a prefix");
        Nodes::new(names, "own".into())
    }

    /// A member created in the given minute, changed at `revision`.
    fn node(name: &str, cidr: &str, minute: u8, revision: u64) -> Node {
        let json = json!({
            "metadata": {
                "name": name,
                "resourceVersion": revision.to_string(),
                "creationTimestamp": format!("2026-01-01T00:{minute:02}:00Z"),
                "annotations": {
                    "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                    "flannel.alpha.coreos.com/public-ip": format!("192.168.0.{minute}"),
                },
            },
            "spec": {"podCIDR": cidr},
        });
        serde_json::from_value(json).expect("a Node")
    }

    /// The keeper's table after the changes: public addresses of leases, and the refused nodes.
    #[derive(Default)]
    struct Keeper(Table);

    impl Keeper {
        fn hear(&mut self, changes: Vec<EntryChange>) -> (Vec<String>, Vec<String>) {
            for change in changes {
                self.0.apply(change, false);
            }
            let leases = self.0.leases().sorted();
            let leases = leases
                .iter()
                .map(|lease| lease.attributes.public_ip.to_string());
            let refused = self.0.rejected().sorted();
            let refused = refused
                .iter()
                .map(|it| format!("{}: {}", it.subject, it.reason));
            (leases.collect(), refused.collect())
        }
    }

    const CIDR: &str = "10.0.1.0/24";

    #[test]
    fn the_older_of_two_nodes_holds_a_subnet_whoever_is_heard_of_first() {
        for order in [[1, 2], [2, 1]] {
            let (mut nodes, mut keeper) = (nodes(), Keeper::default());
            let mut shown = (vec![], vec![]);
            for (revision, minute) in (10..).zip(order) {
                let name = format!("n{minute}");
                shown = keeper.hear(nodes.put(&node(&name, CIDR, minute, revision)));
            }
            let (leases, refused) = shown;
            assert_eq!(leases, ["192.168.0.1"]);
            assert_eq!(
                refused,
                ["node n2: its podCIDR is that of the older node n1"]
            );
            let (leases, refused) = keeper.hear(nodes.remove("n1", 12));
            assert_eq!(leases, ["192.168.0.2"], "the other takes its place");
            assert!(refused.is_empty());
            let (leases, refused) = keeper.hear(nodes.remove("n2", 13));
            assert!(leases.is_empty() && refused.is_empty());
        }
    }

    #[test]
    fn a_list_and_its_changes_come_to_the_same() {
        let all = [
            node("n1", CIDR, 1, 1),
            node("n2", CIDR, 2, 2),
            node("n3", "10.0.3.0/24", 3, 3),
            node("n4", "", 4, 4),
        ];
        let (mut nodes, mut keeper, mut listed) = (nodes(), Keeper::default(), Keeper::default());
        for node in &all {
            keeper.hear(nodes.put(node));
        }
        let changed = keeper.hear(vec![]);
        assert_eq!(
            changed,
            listed.hear(vec![EntryChange::All(nodes.listing(9))])
        );
        assert_eq!(changed.0, ["192.168.0.1", "192.168.0.3"]);
        assert_eq!(changed.1.len(), 2, "{:?}", changed.1);
    }

    #[test]
    fn a_heartbeat_changes_nothing_and_another_subnet_moves_the_lease() {
        let (mut nodes, mut keeper) = (nodes(), Keeper::default());
        keeper.hear(nodes.put(&node("n1", CIDR, 1, 1)));
        assert!(nodes.put(&node("n1", CIDR, 1, 2)).is_empty());
        keeper.hear(nodes.put(&node("n1", "10.0.9.0/24", 1, 3)));
        let keys: Vec<_> = keeper
            .0
            .leases()
            .sorted()
            .iter()
            .map(|it| it.key().to_string())
            .collect();
        assert_eq!(keys, ["10.0.9.0-24"]);
        let left = json!({"metadata": {"name": "n1", "resourceVersion": "4"}});
        let stranger: Node = serde_json::from_value(left).expect("a Node");
        let (leases, _) = keeper.hear(nodes.put(&stranger));
        assert!(leases.is_empty(), "a node that left the overlay");
    }

    #[test]
    fn this_node_knows_its_rival() {
        let mut nodes = nodes();
        nodes.put(&node("own", CIDR, 5, 1));
        assert_eq!(nodes.rival(), None);
        nodes.put(&node("younger", CIDR, 6, 2));
        assert_eq!(nodes.rival(), None);
        nodes.put(&node("older", CIDR, 4, 3));
        assert_eq!(nodes.rival(), Some("older"));
        nodes.remove("older", 4);
        assert_eq!(nodes.rival(), None);
    }
}
