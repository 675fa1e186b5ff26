//! What several tests share: tiny models, and the reference's numbers under our names.

pub mod fuzz;
pub mod padding;
pub mod parity;
pub mod parsers;
pub mod reference;
pub mod text;
pub mod tiny;
pub mod vision;
