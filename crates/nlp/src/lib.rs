#![doc = include_str!("../README.md")]

mod cache;
mod corpus;
mod dataset;
mod encoder;
mod feature;
mod mask;
mod tokenizer;

pub use cache::Progress;
pub use corpus::{Documents, InvalidUtf8, read_text};
pub use dataset::{Packing, TextDataConfig, TextDataset, collate, train_tokenizer};
pub use encoder::TextEncoder;
pub use feature::{TokenEncoder, TokenEncoderConfig};
pub use mask::{OtherTokens, SpanMask, TextMaskConfig, TokenMask};
pub use tokenizer::{SpecialIds, TOKENIZER_FILE, Tokenizer, TokenizerSource};
