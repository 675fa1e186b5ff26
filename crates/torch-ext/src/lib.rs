#![doc = include_str!("../README.md")]

mod foreach;
mod process;

pub use foreach::{FusedAdamW, ema_update, fused_adamw, scale, total_norm};
pub use process::{keep_freed_memory, libtorch_version, load_cuda, release_freed_memory};
