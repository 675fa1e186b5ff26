#![doc = include_str!("../README.md")]

mod blob;
mod braces;
mod build;
mod error;
mod example;
mod index;
mod lru;
mod places;
mod source;
mod tar;
mod varint;

pub use error::{Error, Result};
pub use example::{Example, Field, Value};
pub use source::{Progress, Source, SourceConfig};
