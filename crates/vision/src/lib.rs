#![doc = include_str!("../README.md")]

mod augment;
mod classifier;
pub mod convert;
mod dataset;
mod encoder;
mod erase;
mod feature;
mod folder;
mod idx;
mod images;
mod labelled;
mod mask;
mod mixup;
mod noise;
mod pixels;
mod positions;
mod rand_augment;
mod resample;
mod shards;

pub use augment::{Light, VisionDataConfig};
pub use classifier::ImageClassifier;
pub use dataset::VisionDataset;
pub use encoder::VisionEncoder;
pub use erase::erased_part;
pub use feature::{PatchEncoder, PatchEncoderConfig};
pub use images::Images;
pub use labelled::{AugmentConfig, LabelledImage, LabelledImages, has_sides};
pub use mask::{BlockMask, InverseBlockMask, PatchMask, VisionMaskConfig};
pub use mixup::Mix;
pub use pixels::{EXTENSIONS, MAX_PIXELS, Pixels};
pub use positions::Positions;
pub use rand_augment::{Between, ImageOp, Interpolation, RandAugment};
pub use resample::Crop;
