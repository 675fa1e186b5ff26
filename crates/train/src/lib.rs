#![doc = include_str!("../README.md")]

pub mod curve;
pub mod device;
pub mod diff;
pub mod doctor;
mod energy;
pub mod evaluate;
pub mod evaluator;
pub mod finetune;
mod labelled_batches;
pub mod log;
pub mod messages;
pub mod metrics;
pub mod plan;
pub mod pretrain;
pub mod probe;
pub mod process_group;
pub mod recipe;
pub mod record;
pub mod report;
pub mod run_dir;
pub mod selection;
pub mod sources;
pub mod stop;
pub mod training;

pub use finetune::{FinetuneOptions, finetune};
pub use log::{Observer, RunInfo};
pub use pretrain::{PretrainOptions, pretrain};
pub use stop::Stop;
pub use training::{Outcome, RunOptions, Summary};
