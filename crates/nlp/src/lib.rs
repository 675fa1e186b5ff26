#![doc = include_str!("../README.md")]

mod blocks;
mod cache;
mod classifier;
mod config;
pub mod convert;
mod dataset;
mod dictionary;
mod encoder;
mod feature;
mod gzip;
mod labelled;
mod listing;
mod mask;
mod modality;
mod pieces;
mod raw;
mod sequence;
mod tfidf;
mod tokenizer;

pub use cache::Progress;
pub use classifier::TextClassifier;
pub use config::{
    Documents, InvalidUtf8, LabelledTextConfig, Packing, TextDataConfig, TokenEncoderConfig,
    TokenizerSource,
};
pub use data2vec_core::{Error, Precision, Result};
pub use dataset::{TextDataset, collate, train_tokenizer};
pub use encoder::TextEncoder;
pub use feature::TokenEncoder;
pub use labelled::{LabelledFiles, LabelledTexts};
pub use listing::read_text;
pub use mask::{OtherTokens, SpanMask, TextMaskConfig, TokenMask};
pub use modality::Nlp;
pub use raw::{TextFileStats, TextFiles};
pub use tokenizer::{SpecialIds, TOKENIZER_FILE, Tokenizer};
