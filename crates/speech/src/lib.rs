#![doc = include_str!("../README.md")]

pub mod audio;
mod config;
pub mod convert;
mod corpus;
pub mod ctc;
mod dataset;
mod encoder;
mod feature;
mod index;
mod labelled;
pub mod lm;
mod mask;
mod recognizer;
mod resample;
mod store;
pub mod subtitles;
mod text_file;
mod transcripts;
mod vocabulary;

pub use config::{Batching, HeldOut, SpeechDataConfig};
pub use dataset::SpeechDataset;
pub use encoder::SpeechEncoder;
pub use feature::{ConvNorm, WaveCompat, WaveEncoder, WaveEncoderConfig};
pub use labelled::{LabelKind, LabelledSpeech, LabelledSpeechConfig, LeftOut, TranscribedDataset};
pub use mask::{BlockMask, SpanMask, SpeechMaskConfig};
pub use recognizer::{AudioClassifier, Recognizer, Transcript, Word};
pub use transcripts::{Case, normalize as normalize_text};
