//! One optimizer step of pretraining and of fine-tuning, and what it needs.

pub mod chunks;
pub mod finetune;
pub mod optim;
pub mod optim_state;
pub mod precision;
pub mod pretrain;
pub mod schedule;
pub mod world;
