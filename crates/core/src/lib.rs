#![doc = include_str!("../README.md")]
//!
//! # Shapes
//!
//! One legend for all comments: B sequences, M copies of each (2.0 masks each several times), S raw
//! samples, T tokens, K visible tokens, P prefix tokens, D width, H heads, N masked tokens of a batch.

pub mod data;
mod error;
pub mod eval;
pub mod io;
pub mod method;
pub mod modality;
pub mod model;
pub mod random;
pub mod train;

pub use data::batch::{Batch, LabelledBatch, Targets, Tokens, padding_mask};
pub use data::dataset::Dataset;
pub use data::loader::{Loaded, Loader, LoaderConfig};
pub use data::mixture::MixtureDataset;
pub use error::{Error, Result, guarded, panic_message};
pub use eval::explained::ExplainedVariance;
pub use eval::health::{Health, effective_rank};
pub use io::checkpoint::{Checkpoints, Position, Snapshot};
pub use method::config::{Data2VecConfig, MaskedInput, ModelCompat, ModelConfig};
pub use method::data2vec::{Data2Vec, Objective, StudentInput};
pub use method::decoder::{Decode, Decoder, DecoderConfig};
pub use method::loss::{CrossEntropy, Loss, RegressionLoss};
pub use method::mask::{Mask, MaskStrategy, Substitute, Visible};
pub use method::parts::Parts;
pub use method::target::{Target, TargetConfig, TargetNorm, TargetSource};
pub use method::teacher::{EmaConfig, EmaScope, EmaTeacher};
pub use modality::baseline::RawFeatures;
pub use modality::convert::ConvertModality;
pub use modality::extract::Extractor;
pub use modality::finetune::{FinetuneModality, LabelledSource, LabelledSplits, NoMask, Split};
pub use modality::preview::{Preview, Raster};
pub use modality::{Features, Modality, OnProgress, Progress, Source, Splits, Units};
pub use model::encoder::{Encoder, EncoderConfig, EncoderOutput};
pub use model::feature::{FeatureEncoder, InputTarget};
pub use model::finetuned::{FinetunedModel, save_model};
pub use model::head::{Head, HeadConfig, HeadTask, Pool};
pub use model::transformer::{Layer, NormPlacement, Transformer, TransformerConfig, WeightInit};
pub use train::finetune::{FinetuneConfig, FinetuneReport, FinetuneState};
pub use train::optim::{AdamW, AdamWConfig, Gradients};
pub use train::optim_state::{OptimState, StepConfig};
pub use train::precision::Precision;
pub use train::pretrain::{StepReport, TrainState};
pub use train::schedule::Schedule;
pub use train::world::World;
