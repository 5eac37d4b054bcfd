//! A hash map that the agent alone writes, with a copy of its entries, so that the cost of an
//! update depends on the changes and not on the size of the map.

use std::collections::BTreeMap;

use aya::Pod as Plain;
use aya::maps::{HashMap, MapData};

use super::super::Error;
use super::super::pins::Pins;
use super::{batch, dump, failed, missing_is_none, open};

pub(super) struct Mirrored<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    /// The same map again, because aya shows no file descriptor of a typed one.
    data: MapData,
    /// What the map holds as far as known; none before the first look.
    copy: Option<BTreeMap<K, V>>,
}

impl<K: Plain + Ord, V: Plain + PartialEq> Mirrored<K, V> {
    /// Opens a pinned map; nothing is read yet.
    pub fn open(pins: &Pins, name: &'static str) -> Result<Self, Error> {
        Ok(Self {
            name,
            map: open(pins, name)?,
            data: MapData::from_pin(pins.map(name)).map_err(failed("open pinned", name))?,
            copy: None,
        })
    }

    /// What the map holds now.
    pub fn dump(&self) -> Result<BTreeMap<K, V>, Error> {
        let mut entries = BTreeMap::new();
        let read = batch::for_each(&self.data, |key, value| {
            entries.insert(key, value);
        });
        match read {
            Ok(()) => Ok(entries),
            // Linux before 5.6 has no batches.
            Err(_) => dump(&self.map, self.name),
        }
    }

    /// Looks at the map itself; true if another process has written it.
    pub fn look(&mut self) -> Result<bool, Error> {
        if self.is_as_known() {
            return Ok(false);
        }
        let now = self.dump()?;
        let is_news = self.copy.as_ref().is_some_and(|copy| *copy != now);
        self.copy = Some(now);
        Ok(is_news)
    }

    /// Whether the map holds what is known of it. Makes no second copy, which would cost ten times
    /// as much as the look.
    fn is_as_known(&self) -> bool {
        let Some(copy) = &self.copy else {
            return false;
        };
        let (mut found, mut are_same) = (0, true);
        let read = batch::for_each(&self.data, |key: K, value: V| {
            found += 1;
            are_same &= copy.get(&key) == Some(&value);
        });
        read.is_ok() && are_same && found == copy.len()
    }

    /// What the map holds, as far as known.
    pub fn entries(&mut self) -> Result<&BTreeMap<K, V>, Error> {
        if self.copy.is_none() {
            self.look()?;
        }
        Ok(self.copy.get_or_insert_default())
    }

    /// Writes the entries that are new or different, each in one step; returns how many.
    pub fn fill(&mut self, desired: &BTreeMap<K, V>) -> Result<usize, Error> {
        let due = missing(desired, self.entries()?, |wanted, known| wanted == known);
        for (key, value) in &due {
            self.insert(*key, *value)?;
        }
        Ok(due.len())
    }

    /// Removes the entries that `desired` does not have; returns how many.
    pub fn retire(&mut self, desired: &BTreeMap<K, V>) -> Result<usize, Error> {
        let due = missing(self.entries()?, desired, |_, _| true);
        for (key, _) in &due {
            missing_is_none(self.map.remove(key)).map_err(failed("delete from", self.name))?;
            self.copy.get_or_insert_default().remove(key);
        }
        Ok(due.len())
    }

    /// Changes the entries that `change` has another value for; returns how many.
    pub fn update(&mut self, change: impl Fn(&K, &V) -> Option<V>) -> Result<usize, Error> {
        let known = self.entries()?;
        let due: Vec<(K, V)> = known
            .iter()
            .filter_map(|(key, value)| Some((*key, change(key, value)?)))
            .collect();
        for (key, value) in &due {
            self.insert(*key, *value)?;
        }
        Ok(due.len())
    }

    fn insert(&mut self, key: K, value: V) -> Result<(), Error> {
        self.map
            .insert(key, value, 0)
            .map_err(failed("update", self.name))?;
        self.copy.get_or_insert_default().insert(key, value);
        Ok(())
    }
}

/// The entries of `these` that have no match in `those` under the same key. Walks both side by
/// side: looking each key up takes ten times as long.
fn missing<K: Copy + Ord, V: Copy>(
    these: &BTreeMap<K, V>,
    those: &BTreeMap<K, V>,
    is_match: impl Fn(&V, &V) -> bool,
) -> Vec<(K, V)> {
    let mut those = those.iter().peekable();
    let is_missing = |(key, value): &(&K, &V)| {
        while those.next_if(|(other, _)| other < key).is_some() {}
        let other = those.peek().filter(|(other, _)| other == key);
        other.is_none_or(|(_, other)| !is_match(value, other))
    };
    let missing = these.iter().filter(is_missing);
    missing.map(|(key, value)| (*key, *value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn walking_side_by_side_finds_what_looking_up_finds(
            these in prop::collection::btree_map(0u8..40, 0u8..3, 0..30),
            those in prop::collection::btree_map(0u8..40, 0u8..3, 0..30),
        ) {
            let looked_up: Vec<_> = these
                .iter()
                .filter(|(key, value)| those.get(key) != Some(value))
                .map(|(key, value)| (*key, *value))
                .collect();
            prop_assert_eq!(missing(&these, &those, |a, b| a == b), looked_up);
        }
    }
}
