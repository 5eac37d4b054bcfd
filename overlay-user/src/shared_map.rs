//! A map whose clones share equal parts, so that a copy is cheap, and the differences between two
//! copies are found without reading the rest.
//!
//! The entries are spread over a fixed number of shards. A change copies one shard if another clone
//! shares that shard; a comparison skips every shard that both maps share. (The crate `imbl` does
//! the same with trees, but under the MPL, which `deny.toml` does not allow; `rpds` cannot
//! compare.)

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;

/// With ten thousand entries, the shard and the list of shards that a change copies are both short.
const SHARDS: usize = 256;

/// A map that is cheap to clone and to compare with an earlier clone of itself.
#[derive(Clone)]
pub struct SharedMap<K, V> {
    shards: Arc<[Arc<BTreeMap<K, V>>]>,
    len: usize,
}

/// The difference of one key between two maps.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference<'a, K, V> {
    /// The key.
    pub key: &'a K,
    /// The value in the earlier map, if the key was there.
    pub before: Option<&'a V>,
    /// The value in the later map, if the key is there.
    pub now: Option<&'a V>,
}

impl<K: Ord + Hash + Clone, V: Clone + PartialEq> SharedMap<K, V> {
    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of `key`.
    pub fn get<Q: Ord + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards[shard(key)].get(key)
    }

    /// Whether there is an entry of `key`.
    pub fn contains_key<Q: Ord + Hash + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Sets the value of `key`. Setting the value that `key` has already copies nothing.
    pub fn insert(&mut self, key: K, value: V) {
        if self.get(&key) == Some(&value) {
            return;
        }
        let shard = shard(&key);
        let shard = Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard]);
        self.len += usize::from(shard.insert(key, value).is_none());
    }

    /// Removes the entry of `key`.
    pub fn remove<Q: Ord + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?;
        let shard = &mut Arc::make_mut(&mut self.shards)[shard(key)];
        let removed = Arc::make_mut(shard).remove(key);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// The entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// The values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The values in the order of their keys.
    #[must_use]
    pub fn sorted(&self) -> Vec<&V> {
        let mut entries: Vec<_> = self.iter().collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        entries.into_iter().map(|(_, value)| value).collect()
    }

    /// The differences from `earlier`, in no order. Parts that both maps share cost nothing.
    pub fn differences<'a>(
        &'a self,
        earlier: &'a Self,
    ) -> impl Iterator<Item = Difference<'a, K, V>> {
        let pairs = self.shards.iter().zip(earlier.shards.iter());
        pairs
            .filter(|(now, before)| !Arc::ptr_eq(now, before))
            .flat_map(|(now, before)| {
                let gone = before.iter().filter(|(key, _)| !now.contains_key(*key));
                let gone = gone.map(|(key, value)| Difference {
                    key,
                    before: Some(value),
                    now: None,
                });
                let new = now.iter().map(|(key, value)| Difference {
                    key,
                    before: before.get(key),
                    now: Some(value),
                });
                gone.chain(new.filter(|it| it.before != it.now))
            })
    }
}

fn shard<Q: Hash + ?Sized>(key: &Q) -> usize {
    // The hasher's keys are fixed, so that two maps put a key into the same shard.
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    usize::from(hasher.finish().to_le_bytes()[0])
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self {
            shards: vec![Arc::default(); SHARDS].into(),
            len: 0,
        }
    }
}

impl<K: Ord + Hash + Clone, V: Clone + PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differences(other).next().is_none()
    }
}

impl<K: Ord + Hash + Clone, V: Clone + PartialEq> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.shards.iter().flat_map(|shard| shard.iter());
        f.debug_map().entries(entries).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_holds_what_a_plain_map_holds_and_tells_what_differs(
            steps in prop::collection::vec((0u16..600, prop::option::of(0u8..4)), 0..400),
            cut in 0usize..400,
        ) {
            let (mut shared, mut plain) = (SharedMap::default(), BTreeMap::new());
            let mut earlier = (shared.clone(), plain.clone());
            for (index, (key, value)) in steps.into_iter().enumerate() {
                if index == cut {
                    earlier = (shared.clone(), plain.clone());
                }
                match value {
                    Some(value) => {
                        shared.insert(key, value);
                        plain.insert(key, value);
                    }
                    None => prop_assert_eq!(shared.remove(&key), plain.remove(&key)),
                }
            }
            prop_assert_eq!(shared.len(), plain.len());
            prop_assert_eq!(shared.is_empty(), plain.is_empty());
            prop_assert_eq!(shared.sorted(), plain.values().collect::<Vec<_>>());
            let mut differences: Vec<_> = shared
                .differences(&earlier.0)
                .map(|it| (*it.key, it.before.copied(), it.now.copied()))
                .collect();
            differences.sort_unstable();
            let expected: Vec<_> = (0..600)
                .map(|key| (key, earlier.1.get(&key).copied(), plain.get(&key).copied()))
                .filter(|(_, before, now)| before != now)
                .collect();
            prop_assert_eq!(differences, expected);
            prop_assert_eq!(shared == earlier.0, plain == earlier.1);
        }
    }

    #[test]
    fn a_change_leaves_all_other_shards_shared() {
        let mut map: SharedMap<u32, u32> = (0..10_000).map(|key| (key, 0)).collect();
        let before = map.clone();
        map.insert(1, 0);
        assert!(Arc::ptr_eq(&map.shards, &before.shards), "nothing changed");
        map.insert(1, 1);
        let shards = map.shards.iter().zip(before.shards.iter());
        let copied = shards.filter(|(now, before)| !Arc::ptr_eq(now, before));
        assert_eq!(copied.count(), 1);
        assert_eq!(before.get(&1), Some(&0));
    }

    #[test]
    fn it_is_shown_with_its_entries() {
        let map: SharedMap<u32, &str> = [(1, "one")].into_iter().collect();
        assert_eq!(format!("{map:?}"), r#"{1: "one"}"#);
    }

    #[test]
    fn keys_are_spread_over_all_shards() {
        let map: SharedMap<u32, ()> = (0..10_000).map(|key| (key, ())).collect();
        let sizes = map.shards.iter().map(|shard| shard.len());
        let fair = 10_000 / map.shards.len();
        assert!(sizes.clone().all(|size| size > 0 && size < 3 * fair));
    }
}
