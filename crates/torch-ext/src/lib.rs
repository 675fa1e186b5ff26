#![doc = include_str!("../README.md")]

mod checkpoint;
pub mod dist;
mod foreach;
mod layers;
mod memory;
mod precision;
mod process;
mod profile;
mod shim;

pub use checkpoint::checkpoint;
pub use foreach::{FusedAdamW, ema_update, fused_adamw, moments, total_norm, zero_grad};
pub use layers::{
    attention, conv1d_channels_last, dropout, gelu_linear, noise, norm_gelu, residual_dropout,
};
pub use memory::{Memory, memory, reset_peak_memory};
pub use precision::{autocast_bf16, is_autocast_on};
pub use process::{
    keep_freed_memory, libtorch_version, load_cuda, release_freed_memory, set_deterministic,
    set_thread_num_threads,
};
pub use profile::{Op, drain_timings, profile, scope};
