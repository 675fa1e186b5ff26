//! What was used last stays, within a bound.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::turns::Turns;

/// Values by key, of costs that add up to at most the bound; the newest stays whatever its cost.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    bound: u64,
    kept: Mutex<Kept<K, V>>,
    turns: Turns<K>,
}

#[derive(Debug)]
struct Kept<K, V> {
    values: HashMap<K, (Arc<V>, u64, u64)>,
    cost: u64,
    clock: u64,
}

impl<K: Hash + Eq + Clone, V> Lru<K, V> {
    pub fn new(bound: u64) -> Self {
        let kept = Kept { values: HashMap::new(), cost: 0, clock: 0 };
        Self { bound, kept: Mutex::new(kept), turns: Turns::new() }
    }

    /// The value of `key`, made, with its cost, if it is not kept.
    pub fn get<E>(&self, key: K, make: impl FnOnce() -> Result<(V, u64), E>) -> Result<Arc<V>, E> {
        self.turns.one(
            &key,
            || self.kept().used(&key),
            || {
                let (value, cost) = make()?;
                let value = Arc::new(value);
                self.kept().put(key.clone(), value.clone(), cost, self.bound);
                Ok(value)
            },
        )
    }

    fn kept(&self) -> MutexGuard<'_, Kept<K, V>> {
        self.kept.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl<K: Hash + Eq + Clone, V> Kept<K, V> {
    fn used(&mut self, key: &K) -> Option<Arc<V>> {
        self.clock += 1;
        let (value, _, last) = self.values.get_mut(key)?;
        *last = self.clock;
        Some(value.clone())
    }

    fn put(&mut self, key: K, value: Arc<V>, cost: u64, bound: u64) {
        self.clock += 1;
        if let Some((_, before, _)) = self.values.insert(key, (value, cost, self.clock)) {
            self.cost -= before;
        }
        self.cost += cost;
        while self.cost > bound && self.values.len() > 1 {
            let oldest = self.values.iter().min_by_key(|(_, (_, _, last))| *last);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { return };
            if let Some((_, cost, _)) = self.values.remove(&oldest) {
                self.cost -= cost;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays() {
        let lru = Lru::new(10);
        let made = Mutex::new(Vec::new());
        let get = |key: u32, cost| {
            let make = || {
                made.lock().expect("no panic").push(key);
                Ok::<_, ()>((key * 2, cost))
            };
            *lru.get(key, make).expect("made")
        };
        for (key, cost) in
            [(1, 4), (2, 4), (1, 4), (3, 4), (1, 4), (2, 4), (9, 11), (9, 11), (2, 4)]
        {
            assert_eq!(get(key, cost), key * 2);
        }
        assert_eq!(*made.lock().expect("no panic"), [1, 2, 3, 2, 9, 2]);
        let kept = lru.kept();
        assert_eq!((kept.cost, kept.values.len()), (4, 1));
    }
}
