#![doc = include_str!("../README.md")]

mod blocks;
mod cache;
mod classifier;
pub mod convert;
mod corpus;
mod dataset;
mod dictionary;
mod encoder;
mod feature;
mod files;
mod glue;
mod labelled;
mod labelled_shards;
mod listing;
mod mask;
mod pieces;
mod sequence;
mod tokenizer;
mod tsv;
mod unpack;

pub use cache::Progress;
pub use classifier::TextClassifier;
pub use corpus::{Documents, InvalidUtf8, read_text};
pub use dataset::{
    Packing, TextDataConfig, TextDataset, TokenizerSource, collate, train_tokenizer,
};
pub use encoder::TextEncoder;
pub use feature::{TokenEncoder, TokenEncoderConfig};
pub use files::{TextFile, TextFiles};
pub use glue::LabelledFiles;
pub use labelled::{LabelledTextConfig, LabelledTexts};
pub use mask::{OtherTokens, SpanMask, TextMaskConfig, TokenMask};
pub use tokenizer::{SpecialIds, TOKENIZER_FILE, Tokenizer};
