//! A least-recently-used cache bounded by cost, shared by threads.

use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use ::lru::LruCache;

use crate::single_flight::SingleFlight;

/// Values by key whose costs sum to at most `capacity`; the newest stays whatever its cost.
#[derive(Debug)]
pub(crate) struct CostLru<K: Hash + Eq, V> {
    capacity: u64,
    entries: Mutex<Entries<K, V>>,
    loading: SingleFlight<K>,
}

#[derive(Debug)]
struct Entries<K: Hash + Eq, V> {
    /// Each value with its cost.
    values: LruCache<K, (Arc<V>, u64)>,
    total_cost: u64,
}

impl<K: Hash + Eq + Clone, V> CostLru<K, V> {
    pub fn new(capacity: u64) -> Self {
        let entries = Entries { values: LruCache::unbounded(), total_cost: 0 };
        Self { capacity, entries: Mutex::new(entries), loading: SingleFlight::new() }
    }

    /// Returns the value of `key`; on a miss `load` returns it with its cost.
    pub fn get<E>(&self, key: K, load: impl FnOnce() -> Result<(V, u64), E>) -> Result<Arc<V>, E> {
        let find = || self.entries().values.get(&key).map(|(value, _)| Arc::clone(value));
        self.loading.run(&key, find, || {
            let (value, cost) = load()?;
            let value = Arc::new(value);
            self.entries().put(key.clone(), Arc::clone(&value), cost, self.capacity);
            Ok(value)
        })
    }

    fn entries(&self) -> MutexGuard<'_, Entries<K, V>> {
        self.entries.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl<K: Hash + Eq, V> Entries<K, V> {
    fn put(&mut self, key: K, value: Arc<V>, cost: u64, capacity: u64) {
        let replaced = self.values.put(key, (value, cost)).map_or(0, |(_, cost)| cost);
        self.total_cost = self.total_cost - replaced + cost;
        while self.total_cost > capacity && self.values.len() > 1 {
            let Some((_, (_, cost))) = self.values.pop_lru() else { return };
            self.total_cost -= cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evicts_least_recently_used_until_cost_fits() {
        let lru = CostLru::new(10);
        let loaded = Mutex::new(Vec::new());
        let get = |key: u32, cost| {
            let load = || {
                loaded.lock().expect("not poisoned").push(key);
                Ok::<_, ()>((key * 2, cost))
            };
            *lru.get(key, load).expect("load succeeds")
        };
        for (key, cost) in
            [(1, 4), (2, 4), (1, 4), (3, 4), (1, 4), (2, 4), (9, 11), (9, 11), (2, 4)]
        {
            assert_eq!(get(key, cost), key * 2);
        }
        assert_eq!(*loaded.lock().expect("not poisoned"), [1, 2, 3, 2, 9, 2]);
        let entries = lru.entries();
        assert_eq!((entries.total_cost, entries.values.len()), (4, 1));
    }
}
