//! In what precision is computed.

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::Result;

/// In what matrix products and convolutions are computed. Parameters, their moments, teacher, targets and
/// loss are f32, and so is what softmax and norms compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 24 significant bits.
    #[default]
    F32,
    /// 8 significant bits: half the memory traffic, and faster where the hardware has it (AVX512-BF16,
    /// AMX, NVIDIA GPUs from Ampere on).
    Bf16,
}

impl Precision {
    /// Runs `body` with products and convolutions on `device` in this precision.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if the device cannot.
    pub fn run<T>(self, device: Device, body: impl FnOnce() -> T) -> Result<T> {
        match self {
            Self::F32 => Ok(body()),
            Self::Bf16 => Ok(data2vec_torch_ext::autocast_bf16(device, body)?),
        }
    }

    /// Whether nothing has to be said of it.
    pub(crate) fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}
