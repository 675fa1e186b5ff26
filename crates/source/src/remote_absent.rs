//! What stands for object stores in a program without them.

use std::io;
use std::sync::Arc;

use crate::cache::Cache;
use crate::places::Shard;
use crate::{Error, Result, SourceConfig};

/// None.
pub(crate) struct Stores;

/// There is none.
#[derive(Clone)]
pub(crate) enum Remote {}

fn absent(place: &str) -> Error {
    Error::shard(place, "this program was built without the feature `remote`")
}

impl Stores {
    pub fn new(_: &SourceConfig) -> Self {
        Self
    }

    pub fn list(&self, place: &str, _: &mut Vec<Shard>) -> Result<()> {
        Err(absent(place))
    }

    pub fn text(&self, place: &str) -> Result<String> {
        Err(absent(place))
    }
}

impl Remote {
    pub fn open(shard: &Shard, _: &Arc<Stores>, _: &Arc<Cache>) -> Result<Self> {
        Err(absent(&shard.name))
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
