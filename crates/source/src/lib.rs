#![doc = include_str!("../README.md")]

mod blob;
mod braces;
mod build;
mod cache;
mod error;
mod example;
mod files;
mod gzip;
mod index;
mod jsonl;
mod lru;
mod names;
mod pack;
#[cfg_attr(not(feature = "parquet"), path = "parquet_absent.rs")]
mod parquet;
mod places;
#[cfg_attr(not(feature = "remote"), path = "remote_absent.rs")]
mod remote;
mod source;
mod tar;
mod turns;
mod varint;

pub use error::{Error, Result};
pub use example::{Example, Field, Value};
pub use files::{Files, watch_indexing};
pub use names::key_of;
pub use pack::{Packed, Packer};
pub use places::{has_shards, is_of_shards};
pub use source::{Progress, Source, SourceConfig};
