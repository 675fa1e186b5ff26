#![doc = include_str!("../README.md")]

mod feature;
mod mask;
mod positions;

pub use feature::{PatchEncoder, PatchEncoderConfig};
pub use mask::{BlockMask, InverseBlockMask, PatchMask, VisionMaskConfig};
pub use positions::Positions;
