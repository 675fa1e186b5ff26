#![doc = include_str!("../README.md")]

mod blob;
mod braces;
mod build;
mod cache;
mod error;
mod example;
mod gzip;
mod index;
mod jsonl;
mod lru;
mod mixture;
#[cfg_attr(not(feature = "parquet"), path = "parquet_absent.rs")]
mod parquet;
mod permutation;
mod places;
#[cfg_attr(not(feature = "remote"), path = "remote_absent.rs")]
mod remote;
mod source;
mod tar;
mod turns;
mod varint;

pub use error::{Error, Result};
pub use example::{Example, Field, Value};
pub use mixture::Mixture;
pub use source::{Progress, Source, SourceConfig};
