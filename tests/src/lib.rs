//! Shared test code: tiny models, reference values under our variable names, parsers to fuzz.

pub mod fuzz;
pub mod padding;
pub mod parity;
pub mod parsers;
pub mod program;
pub mod reference;
pub mod text;
pub mod tiny;
pub mod vision;
