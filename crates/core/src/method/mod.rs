//! The method: masks, student, teacher, targets, decoder and loss. Read [`data2vec`] first.

mod compat;
pub mod config;
pub mod data2vec;
pub mod decoder;
pub mod loss;
pub mod mask;
pub mod parts;
pub mod target;
pub mod teacher;
