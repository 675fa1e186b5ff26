//! The subcommands, one file each. They define arguments, call the library and print results.

pub mod bench;
pub mod classify;
pub mod data;
pub mod diff;
pub mod doctor;
pub mod evaluate;
pub mod export;
pub mod extract;
pub mod finetune;
mod hub;
pub mod import;
pub mod pretrain;
pub mod probe;
pub mod report;
mod shared;
pub mod tokenizer;
pub mod transcribe;
