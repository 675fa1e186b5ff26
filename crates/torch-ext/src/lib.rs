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
pub use foreach::{FusedAdamW, ema_update, forget_gradients, fused_adamw, moments, total_norm};
pub use layers::{
    attention, dropout, gelu_linear, noise, norm_gelu, residual_dropout, window_linear,
};
pub use memory::{Memory, memory, reset_peak_memory};
pub use precision::{autocast_bf16, is_autocast_on};
pub use process::{
    compute_on_this_thread_alone, keep_freed_memory, libtorch_version, load_cuda,
    release_freed_memory, set_deterministic,
};
pub use profile::{Op, profile, scope, take_spent};
