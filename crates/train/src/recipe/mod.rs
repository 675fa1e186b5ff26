//! Recipes: TOML files that define a run.

mod finetune;
mod pretrain;
mod table;
mod train_config;

pub use finetune::FinetuneRecipe;
pub use pretrain::Recipe;
pub use table::{changes, explain, keys, nearest, read, read_run, set, steps};
pub use train_config::{OnFailure, TrainConfig};
