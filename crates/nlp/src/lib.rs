#![doc = include_str!("../README.md")]

mod feature;
mod mask;

pub use feature::{TokenEncoder, TokenEncoderConfig};
pub use mask::{OtherTokens, SpanMask, TextMaskConfig, TokenMask};
