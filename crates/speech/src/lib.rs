#![doc = include_str!("../README.md")]

pub mod audio;
pub mod convert;
mod corpus;
mod dataset;
mod encoder;
mod feature;
mod index;
mod mask;
mod resample;

pub use dataset::{Batching, HeldOut, SpeechDataConfig, SpeechDataset};
pub use encoder::SpeechEncoder;
pub use feature::{ConvNorm, WaveCompat, WaveEncoder, WaveEncoderConfig};
pub use mask::{BlockMask, SpanMask, SpeechMaskConfig};
