#![doc = include_str!("../README.md")]

pub mod audio;
mod chunking;
mod classifier;
mod config;
pub mod convert;
pub mod ctc;
mod dataset;
mod encoder;
mod feature;
mod labelled;
mod listing;
pub mod lm;
mod mask;
mod modality;
mod preprocess;
mod recognizer;
mod resample;
mod spectrogram;
pub mod subtitles;
mod text_file;
mod transcripts;
mod vocabulary;

pub use classifier::AudioClassifier;
pub use config::{
    Batching, ConvNorm, LabelKind, LabelledSpeechConfig, SpeechDataConfig, WaveCompat,
    WaveEncoderConfig,
};
pub use data2vec_core::{Error, Precision, Result};
pub use dataset::SpeechDataset;
pub use encoder::SpeechEncoder;
pub use feature::WaveEncoder;
pub use labelled::{LabelledSpeech, LeftOut, TranscribedDataset};
pub use mask::{BlockMask, SpanMask, SpeechMaskConfig};
pub use modality::{Speech, SpeechFinetuneMask};
pub use recognizer::{Recognizer, Transcript, Word};
pub use spectrogram::{log_mel, mel_filters};
pub use transcripts::{Case, normalize as normalize_text};
