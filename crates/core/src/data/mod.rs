//! Datasets, batches and the threads that load them.

pub mod batch;
pub mod dataset;
pub mod loader;
pub mod mixture;
pub mod split;
