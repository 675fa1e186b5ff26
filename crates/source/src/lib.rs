#![doc = include_str!("../README.md")]

mod blob;
mod braces;
mod build;
mod cache;
mod config;
mod error;
mod example;
mod files;
mod gzip;
mod index;
mod jsonl;
mod locations;
mod lru;
mod names;
mod pack;
#[cfg_attr(not(feature = "parquet"), path = "parquet_disabled.rs")]
mod parquet;
#[cfg_attr(not(feature = "remote"), path = "remote_disabled.rs")]
mod remote;
mod shard;
mod single_flight;
mod source;
mod tar;
mod temp;
mod varint;

pub use build::Progress;
pub use config::SourceConfig;
pub use error::{Error, Result};
pub use example::{Example, Field, Value};
pub use files::{Files, watch_indexing};
pub use locations::{has_shards, is_shard_path};
pub use names::key_of;
pub use pack::{Packed, Packer};
pub use source::Source;
