#![doc = include_str!("../README.md")]

mod augment;
mod dataset;
mod encoder;
mod feature;
mod folder;
mod idx;
mod mask;
mod pixels;
mod positions;
mod resample;

pub use augment::{Light, VisionDataConfig};
pub use dataset::VisionDataset;
pub use encoder::VisionEncoder;
pub use feature::{PatchEncoder, PatchEncoderConfig};
pub use mask::{BlockMask, InverseBlockMask, PatchMask, VisionMaskConfig};
pub use pixels::{EXTENSIONS, MAX_PIXELS, Pixels};
pub use positions::Positions;
pub use resample::Crop;
