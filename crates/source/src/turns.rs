//! What several threads want, one makes.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard};

/// What is being made.
#[derive(Debug)]
pub(crate) struct Turns<K> {
    making: Mutex<HashSet<K>>,
    done: Condvar,
}

impl<K: Hash + Eq + Clone> Turns<K> {
    pub fn new() -> Self {
        Self { making: Mutex::default(), done: Condvar::new() }
    }

    /// What `find` finds, or else what `make` makes; others who ask for the same wait meanwhile, and then
    /// find it or, should it have failed, make it themselves.
    pub fn one<T, E>(
        &self,
        key: &K,
        find: impl Fn() -> Option<T>,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let _turn = loop {
            if let Some(found) = find() {
                return Ok(found);
            }
            let mut making = self.making();
            if making.insert(key.clone()) {
                break Turn { turns: self, key };
            }
            drop(self.done.wait(making)); // then look again
        };
        // Another may have made it between the look and the turn.
        match find() {
            Some(found) => Ok(found),
            None => make(),
        }
    }

    fn making(&self) -> MutexGuard<'_, HashSet<K>> {
        self.making.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The right to make something, given back whatever happens.
struct Turn<'a, K: Hash + Eq + Clone> {
    turns: &'a Turns<K>,
    key: &'a K,
}

impl<K: Hash + Eq + Clone> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        self.turns.making().remove(self.key);
        self.turns.done.notify_all();
    }
}
