#![doc = include_str!("../README.md")]
//!
//! # Shapes
//!
//! One legend for all comments: B sequences, M copies of each (2.0 hides each several times), S raw
//! samples, T tokens, K visible tokens, P prefix tokens, D width, H heads, N hidden tokens of a batch.

mod batch;
pub mod data;
mod error;
mod feature;
pub mod loader;
mod mask;
pub mod random;

pub use batch::{Batch, Tokens, padding_mask};
pub use data::Dataset;
pub use error::{Error, Result};
pub use feature::FeatureEncoder;
pub use loader::{Loaded, Loader, LoaderConfig};
pub use mask::{Mask, MaskStrategy, Visible};
