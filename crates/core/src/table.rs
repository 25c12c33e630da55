//! Shared values by id: found by the hash that the id brings along, listed in the order of the ids.

use std::hash::Hash;
use std::ops::Bound;
use std::sync::Arc;

use imbl::shared_ptr::DefaultSharedPtr;
use imbl::{GenericHashMap, OrdSet};

use crate::ids::IdHashes;

/// A clone shares what neither has changed since.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table<K: Hash + Eq + Ord + Clone, V> {
    ids: OrdSet<K>,
    values: GenericHashMap<K, Arc<V>, IdHashes, DefaultSharedPtr>,
}

impl<K: Hash + Eq + Ord + Clone, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { ids: OrdSet::new(), values: GenericHashMap::with_hasher(IdHashes::default()) }
    }
}

impl<K: Hash + Eq + Ord + Clone, V: Clone> Table<K, V> {
    pub fn get(&self, id: &K) -> Option<&V> {
        self.get_shared(id).map(Arc::as_ref)
    }

    pub fn get_shared(&self, id: &K) -> Option<&Arc<V>> {
        self.values.get(id)
    }

    pub fn contains(&self, id: &K) -> bool {
        self.values.contains_key(id)
    }

    /// Makes the value this table's own if another shares it.
    pub fn get_mut(&mut self, id: &K) -> Option<&mut V> {
        self.values.get_mut(id).map(Arc::make_mut)
    }

    pub fn insert(&mut self, id: K, value: V) {
        if self.values.insert(id.clone(), Arc::new(value)).is_none() {
            self.ids.insert(id);
        }
    }

    pub fn remove(&mut self, id: &K) {
        if self.values.remove(id).is_some() {
            self.ids.remove(id);
        }
    }

    pub fn ids(&self) -> impl Iterator<Item = &K> {
        self.ids.iter()
    }

    /// By id.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.ids.iter().filter_map(|id| self.get(id))
    }

    /// The same, to be kept.
    pub fn values_shared(&self) -> impl Iterator<Item = &Arc<V>> {
        self.ids.iter().filter_map(|id| self.get_shared(id))
    }

    /// By id, from `first` on; all of them if there is none.
    pub fn values_from(&self, first: Option<&K>) -> impl Iterator<Item = &V> {
        let first = first.map_or(Bound::Unbounded, Bound::Included);
        self.ids.range::<_, K>((first, Bound::Unbounded)).filter_map(|id| self.get(id))
    }
}
