//! Precision of matrix products and convolutions.

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::Result;

/// Precision of matrix products and convolutions.
///
/// Parameters, moments, teacher, targets and loss are f32 in any precision, as are softmax and the
/// statistics of norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// bfloat16 autocast: halves memory traffic, and is faster on hardware with support
    /// (AVX512-BF16, AMX, NVIDIA GPUs since Ampere).
    Bf16,
}

impl Precision {
    /// Runs `body` with matrix products and convolutions on `device` in this precision.
    ///
    /// # Errors
    /// Returns [`Error::Torch`](crate::Error::Torch) if the device does not support it.
    pub fn run<T>(self, device: Device, body: impl FnOnce() -> T) -> Result<T> {
        match self {
            Self::F32 => Ok(body()),
            Self::Bf16 => Ok(data2vec_torch_ext::autocast_bf16(device, body)?),
        }
    }

    /// Returns whether this is the default, which is not serialised.
    pub(crate) fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}
