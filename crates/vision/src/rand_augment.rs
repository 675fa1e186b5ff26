//! RandAugment (Cubuk et al. 2019): random operations of similar magnitude, as in timm.

use std::fmt;
use std::str::FromStr;

use data2vec_core::Error;
use rand::{Rng, RngExt};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::distributions::normal;
use crate::enhance::Enhancement;
use crate::pixels::Pixels;

mod ops;

pub use ops::{ImageOp, Resampling};

/// Magnitude of full strength.
const FULL: f64 = 10.0;

/// Settings of RandAugment. A recipe contains timm's name, e.g. `"rand-m9-mstd0.5-inc1"`, or a table
/// of these keys.
///
/// The operations are timm's "increasing" set: each is stronger at larger magnitudes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct RandAugment {
    /// Mean magnitude; timm's `m`.
    pub magnitude: f64,
    /// Standard deviation of the magnitude; timm's `mstd`.
    pub std: f64,
    /// Largest magnitude; timm's `mmax`.
    pub max: f64,
    /// Number of operations per image; timm's `n`.
    pub ops: usize,
    /// Probability that each operation is applied; timm's `p`.
    pub chance: f64,
    /// Interpolation of geometric operations. timm uses that of its crops, which are bicubic here,
    /// so a name means bicubic.
    pub interpolation: Interpolation,
}

/// Interpolation of geometric operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Bilinear or bicubic, drawn for each operation.
    Random,
    /// From 2 × 2 pixels.
    Bilinear,
    /// From 4 × 4 pixels.
    Bicubic,
}

impl RandAugment {
    /// Checks all settings; `key` is the recipe key of this table.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self, key: &str) -> data2vec_core::Result<()> {
        let bad = |name: &str, reason: String| Err(Error::config(format!("{key}.{name}"), reason));
        for (name, value) in [("magnitude", self.magnitude), ("std", self.std), ("max", self.max)] {
            if !(0.0..=100.0).contains(&value) {
                return bad(
                    name,
                    format!("must be from 0 to 100 ({FULL} is full strength), not {value}"),
                );
            }
        }
        if !(1..=100).contains(&self.ops) {
            return bad("ops", format!("must be from 1 to 100, not {}", self.ops));
        }
        if !(0.0..=1.0).contains(&self.chance) {
            return bad(
                "chance",
                format!("must be a probability from 0 to 1, not {}", self.chance),
            );
        }
        Ok(())
    }

    /// Samples the operations for one image, in order.
    pub fn sample_ops(&self, rng: &mut impl Rng) -> Vec<ImageOp> {
        let mut ops = Vec::with_capacity(self.ops);
        for _ in 0..self.ops {
            if rng.random::<f64>() < self.chance {
                let magnitude = self.magnitude + self.std * normal(rng);
                let magnitude = magnitude.clamp(0.0, self.max);
                ops.push(sample_op(magnitude / FULL, rng));
            }
        }
        ops
    }

    /// Samples operations and applies them. `fill` is the color of pixels from outside the image,
    /// one value per channel.
    ///
    /// # Panics
    /// Panics if `fill` has fewer values than the image has channels.
    pub fn apply(&self, mut pixels: Pixels, fill: &[u8], rng: &mut impl Rng) -> Pixels {
        for op in self.sample_ops(rng) {
            let resampling = match self.interpolation {
                Interpolation::Bilinear => Resampling::Bilinear,
                Interpolation::Bicubic => Resampling::Bicubic,
                Interpolation::Random if rng.random() => Resampling::Bilinear,
                Interpolation::Random => Resampling::Bicubic,
            };
            pixels = pixels.apply_op(op, resampling, fill);
        }
        pixels
    }
}

/// Samples one of the fifteen operations, of strength `level` in 0..=1.
fn sample_op(level: f64, rng: &mut impl Rng) -> ImageOp {
    let kind = rng.random_range(0..15);
    let mut signed = |max: f64| if rng.random() { max * level } else { -max * level };
    let steps = |max: f64| (max * level) as u32;
    match kind {
        0 => ImageOp::AutoContrast,
        1 => ImageOp::Equalize,
        2 => ImageOp::Invert,
        3 => ImageOp::Rotate(signed(30.0)),
        4 => ImageOp::Posterize(4_u32.saturating_sub(steps(4.0))),
        5 => ImageOp::Solarize(256_u32.saturating_sub(steps(256.0))),
        6 => ImageOp::SolarizeAdd(steps(110.0)),
        7 => ImageOp::Enhance(Enhancement::Saturation, factor(signed)),
        8 => ImageOp::Enhance(Enhancement::Contrast, factor(signed)),
        9 => ImageOp::Enhance(Enhancement::Brightness, factor(signed)),
        10 => ImageOp::Sharpness(factor(signed)),
        11 => ImageOp::ShearX(signed(0.3)),
        12 => ImageOp::ShearY(signed(0.3)),
        13 => ImageOp::TranslateX(signed(0.45)),
        _ => ImageOp::TranslateY(signed(0.45)),
    }
}

/// Returns the factor of an enhancement or of sharpness; 1 is the identity.
fn factor(signed: impl FnOnce(f64) -> f64) -> f64 {
    (1.0 + signed(0.9)).max(0.1)
}

/// Parses timm's name.
impl FromStr for RandAugment {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let mut parts = name.split('-');
        if parts.next() != Some("rand") {
            return Err(format!("`{name}` does not have the form `rand-m9-mstd0.5-inc1`"));
        }
        let mut config = Self {
            magnitude: FULL,
            std: 0.0,
            max: FULL,
            ops: 2,
            chance: 0.5,
            interpolation: Interpolation::Bicubic,
        };
        let mut increasing = false;
        for part in parts {
            let digits = part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len());
            let (key, value) = part.split_at(digits);
            let number: f64 = value
                .parse()
                .map_err(|_| format!("`{part}` in `{name}` is not a key with a number"))?;
            match key {
                "m" => config.magnitude = number,
                "mstd" => config.std = number,
                "mmax" => config.max = number,
                "n" => config.ops = number as usize,
                "p" => config.chance = number,
                "inc" => increasing = number == 1.0,
                _ => {
                    let known = "m, mstd, mmax, n, p, inc";
                    return Err(format!("unknown key `{part}` in `{name}`; use {known}"));
                }
            }
        }
        if !increasing {
            return Err(format!(
                "`{name}` has no `inc1`; only timm's increasing operations are supported"
            ));
        }
        Ok(config)
    }
}

/// Serializes as a table.
impl Serialize for RandAugment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// Deserializes a table or a name.
impl<'de> Deserialize<'de> for RandAugment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrTable)
    }
}

struct NameOrTable;

impl<'de> Visitor<'de> for NameOrTable {
    type Value = RandAugment;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a name like `rand-m9-mstd0.5-inc1`, or a table")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<RandAugment, E> {
        name.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RandAugment, A::Error> {
        // The inherent method that serde derives for `remote = "Self"`.
        RandAugment::deserialize(MapAccessDeserializer::new(map))
    }
}
