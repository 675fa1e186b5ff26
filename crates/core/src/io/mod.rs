//! Files: checkpoints, import and export, TOML settings, atomic writes.

pub mod checkpoint;
pub mod convert;
pub mod file;
pub mod pickle;
pub mod toml;
pub mod walk;
