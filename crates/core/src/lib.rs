#![doc = include_str!("../README.md")]
//!
//! # Shapes
//!
//! One legend for all comments: B sequences, M copies of each (2.0 hides each several times), S raw
//! samples, T tokens, K visible tokens, P prefix tokens, D width, H heads, N hidden tokens of a batch.

mod batch;
pub mod checkpoint;
pub mod convert;
pub mod data;
pub mod data2vec;
pub mod decoder;
pub mod encoder;
mod error;
mod feature;
pub mod head;
pub mod health;
pub mod loader;
pub mod loss;
mod mask;
mod mixed;
pub mod nn;
pub mod optim;
pub mod pickle;
mod precision;
pub mod probe;
pub mod random;
mod ranks;
pub mod schedule;
pub mod score;
pub mod split;
pub mod target;
pub mod teacher;
pub mod train;
pub mod transformer;
pub mod tune;
pub mod tuned;

pub use batch::{Batch, LabelledBatch, Targets, Tokens, padding_mask};
pub use checkpoint::{Checkpoints, Position, Snapshot};
pub use data::Dataset;
pub use data2vec::{Data2Vec, Data2VecConfig, MaskedInput, ModelCompat, ModelConfig, Objective};
pub use decoder::{Decoder, DecoderConfig};
pub use encoder::{Encoder, EncoderConfig, Hidden};
pub use error::{Error, Result, guarded, panic_message};
pub use feature::FeatureEncoder;
pub use head::{Head, HeadConfig, HeadTask, Pool};
pub use health::{Health, effective_rank};
pub use loader::{Loaded, Loader, LoaderConfig};
pub use loss::{Explained, RegressionLoss};
pub use mask::{Mask, MaskStrategy, Substitute, Visible};
pub use mixed::MixtureDataset;
pub use optim::{AdamW, AdamWConfig, Gradients};
pub use precision::Precision;
pub use ranks::World;
pub use schedule::Schedule;
pub use target::{TargetConfig, TargetNorm, TargetSource};
pub use teacher::{EmaConfig, EmaScope, EmaTeacher};
pub use train::{StepConfig, StepReport, TrainState};
pub use transformer::{Layer, NormPlacement, Transformer, TransformerConfig, WeightInit};
pub use tune::{FinetuneConfig, FinetuneReport, FinetuneState};
pub use tuned::{FinetunedModel, write_model};
