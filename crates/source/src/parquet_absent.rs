//! What stands for Parquet in a program without it.

use std::sync::Arc;

use crate::blob::Blob;
use crate::example::Fields;
use crate::index::Entry;

const ABSENT: &str = "this program was built without the feature `parquet`";

/// There is none.
pub(crate) enum Table {}

pub(crate) type Rows = Vec<Fields>;

impl Table {
    pub fn open(_: &Arc<Blob>) -> Result<Self, String> {
        Err(ABSENT.into())
    }

    pub fn place(&self, _: &str) -> Option<(usize, usize)> {
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
    Err(ABSENT.into())
}
