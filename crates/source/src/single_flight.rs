//! Single flight: several threads that need the same value compute it once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard};

/// Keys whose values are being computed.
#[derive(Debug)]
pub(crate) struct SingleFlight<K> {
    in_flight: Mutex<HashSet<K>>,
    finished: Condvar,
}

impl<K: Hash + Eq + Clone> SingleFlight<K> {
    pub fn new() -> Self {
        Self { in_flight: Mutex::default(), finished: Condvar::new() }
    }

    /// Returns what `find` finds, or else what `make` makes.
    ///
    /// Other threads asking for the same key wait, then find the value, or make it if `make`
    /// failed.
    pub fn run<T, E>(
        &self,
        key: &K,
        find: impl Fn() -> Option<T>,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let _flight = loop {
            if let Some(found) = find() {
                return Ok(found);
            }
            let mut in_flight = self.in_flight();
            if in_flight.insert(key.clone()) {
                break Flight { owner: self, key };
            }
            drop(self.finished.wait(in_flight));
        };
        // Another thread may have made it between `find` and the insertion.
        match find() {
            Some(found) => Ok(found),
            None => make(),
        }
    }

    fn in_flight(&self) -> MutexGuard<'_, HashSet<K>> {
        self.in_flight.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Marks a key as being computed, until dropped.
struct Flight<'a, K: Hash + Eq + Clone> {
    owner: &'a SingleFlight<K>,
    key: &'a K,
}

impl<K: Hash + Eq + Clone> Drop for Flight<'_, K> {
    fn drop(&mut self) {
        self.owner.in_flight().remove(self.key);
        self.owner.finished.notify_all();
    }
}
