//! The network that users load: feature encoder, transformer, head.

pub mod encoder;
pub mod feature;
pub mod finetuned;
pub mod head;
pub mod nn;
pub mod transformer;
