#![doc = include_str!("../README.md")]

mod blocks;
mod cache;
mod corpus;
mod dataset;
mod dictionary;
mod encoder;
mod feature;
mod mask;
mod pieces;
mod tokenizer;
mod unpack;

pub use cache::Progress;
pub use corpus::{Documents, InvalidUtf8, read_text};
pub use dataset::{
    Packing, TextDataConfig, TextDataset, TokenizerSource, collate, train_tokenizer,
};
pub use encoder::TextEncoder;
pub use feature::{TokenEncoder, TokenEncoderConfig};
pub use mask::{OtherTokens, SpanMask, TextMaskConfig, TokenMask};
pub use tokenizer::{SpecialIds, TOKENIZER_FILE, Tokenizer};
