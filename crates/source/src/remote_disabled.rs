//! Stand-in for `remote` without the feature `remote`: opening a URL is an error.

use std::io;
use std::sync::Arc;

use crate::cache::Cache;
use crate::config::SourceConfig;
use crate::shard::Shard;
use crate::{Error, Result};

/// No connections.
pub(crate) struct Stores;

/// Uninhabited.
#[derive(Clone)]
pub(crate) enum Remote {}

fn disabled(location: &str) -> Error {
    Error::shard(location, "cannot be read: built without the feature `remote`")
}

impl Stores {
    pub fn new(_: &SourceConfig) -> Self {
        Self
    }

    pub fn list(&self, location: &str, _: &mut Vec<Shard>) -> Result<()> {
        Err(disabled(location))
    }

    pub fn text(&self, location: &str) -> Result<String> {
        Err(disabled(location))
    }
}

impl Remote {
    pub fn open(shard: &Shard, _: &Arc<Stores>, _: &Arc<Cache>) -> Result<Self> {
        Err(disabled(&shard.name))
    }

    pub fn len(&self) -> u64 {
        match *self {}
    }

    pub fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }

    pub fn blocks(&self, _: u64, _: u64) -> std::ops::Range<u64> {
        match *self {}
    }

    pub fn fetch(&self, _: u64) {
        match *self {}
    }
}
