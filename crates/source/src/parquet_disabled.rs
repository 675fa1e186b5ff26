//! Stand-in for `parquet.rs` without the feature `parquet`: opening a Parquet shard is an error.

use std::sync::Arc;

use crate::blob::Blob;
use crate::example::Fields;
use crate::index::Entry;

const DISABLED: &str = "cannot be read: built without the feature `parquet`";

/// Uninhabited.
pub(crate) enum Table {}

pub(crate) type Rows = Vec<Fields>;

impl Table {
    pub fn open(_: &Arc<Blob>) -> Result<Self, String> {
        Err(DISABLED.into())
    }

    pub fn locate(&self, _: &str) -> Option<(usize, usize)> {
        match *self {}
    }

    pub fn range(&self, _: &str) -> Option<(u64, u64)> {
        match *self {}
    }

    pub fn row_group(&self, _: usize) -> Result<(Rows, u64), String> {
        match *self {}
    }

    pub fn columns(&self) -> Vec<String> {
        match *self {}
    }

    pub fn classes(&self, _: &str) -> Option<Vec<String>> {
        match *self {}
    }
}

pub(crate) fn scan(_: &Arc<Blob>, _: &mut dyn FnMut(Entry) -> bool) -> Result<(), String> {
    Err(DISABLED.into())
}
