//! RandAugment: a few random changes of each image, all of about the same strength
//! (Cubuk et al. 2019), as timm does it.

use std::fmt;
use std::str::FromStr;

use data2vec_core::Error;
use rand::{Rng, RngExt};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::augment::Light;
use crate::noise::normal;
use crate::pixels::Pixels;

mod ops;

pub use ops::{Between, ImageOp};

/// The magnitude at which changes have their full strength.
const FULL: f64 = 10.0;

/// What is done to each image. A recipe gives timm's name for it, as in `"rand-m9-mstd0.5-inc1"`, or
/// a table of these keys.
///
/// The changes are those of timm's "increasing" set: the larger the magnitude, the stronger each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct RandAugment {
    /// How strong changes are on average; timm's `m`.
    pub magnitude: f64,
    /// Standard deviation of the strength; timm's `mstd`.
    pub std: f64,
    /// Largest strength; timm's `mmax`.
    pub max: f64,
    /// Changes that are drawn for an image; timm's `n`.
    pub ops: usize,
    /// Chance that each of them is applied; timm's `p`.
    pub chance: f64,
    /// How an image is moved. timm takes what it is told for crops; these are bicubic here, so that is
    /// what its name means.
    pub interpolation: Interpolation,
}

/// How pixels are made where an image is turned or moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// One of the others, each time drawn anew.
    Random,
    /// From four pixels.
    Bilinear,
    /// From sixteen.
    Bicubic,
}

impl RandAugment {
    /// Checks the keys, which stand below `key`.
    ///
    /// # Errors
    /// [`Error::Config`] that names one.
    pub fn validate(&self, key: &str) -> data2vec_core::Result<()> {
        let bad = |name: &str, reason: String| Err(Error::config(format!("{key}.{name}"), reason));
        for (name, value) in [("magnitude", self.magnitude), ("std", self.std), ("max", self.max)] {
            if !(0.0..=100.0).contains(&value) {
                return bad(name, format!("{value} is outside 0 to 100 ({FULL} is full strength)"));
            }
        }
        if !(1..=100).contains(&self.ops) {
            return bad("ops", format!("{} is outside 1 to 100", self.ops));
        }
        if !(0.0..=1.0).contains(&self.chance) {
            return bad("chance", format!("{} is not a chance from 0 to 1", self.chance));
        }
        Ok(())
    }

    /// Changes for one image, in order.
    pub fn draw(&self, rng: &mut impl Rng) -> Vec<ImageOp> {
        let mut drawn = Vec::with_capacity(self.ops);
        for _ in 0..self.ops {
            if rng.random::<f64>() < self.chance {
                let magnitude = self.magnitude + self.std * normal(rng);
                let magnitude = magnitude.clamp(0.0, self.max);
                drawn.push(draw_op(magnitude / FULL, rng));
            }
        }
        drawn
    }

    /// The image after the changes drawn for it. What moves in is of the colour `fill`, a value a
    /// channel.
    ///
    /// # Panics
    /// As [`Pixels::changed`].
    pub fn apply(&self, mut pixels: Pixels, fill: &[u8], rng: &mut impl Rng) -> Pixels {
        for op in self.draw(rng) {
            let between = match self.interpolation {
                Interpolation::Bilinear => Between::Bilinear,
                Interpolation::Bicubic => Between::Bicubic,
                Interpolation::Random if rng.random() => Between::Bilinear,
                Interpolation::Random => Between::Bicubic,
            };
            pixels = pixels.changed(op, between, fill);
        }
        pixels
    }
}

/// One of the fifteen kinds, of strength `level` from 0 to 1.
fn draw_op(level: f64, rng: &mut impl Rng) -> ImageOp {
    let kind = rng.random_range(0..15);
    let mut signed = |most: f64| if rng.random() { most * level } else { -most * level };
    let steps = |most: f64| (most * level) as u32;
    match kind {
        0 => ImageOp::AutoContrast,
        1 => ImageOp::Equalize,
        2 => ImageOp::Invert,
        3 => ImageOp::Rotate(signed(30.0)),
        4 => ImageOp::Posterize(4_u32.saturating_sub(steps(4.0))),
        5 => ImageOp::Solarize(256_u32.saturating_sub(steps(256.0))),
        6 => ImageOp::SolarizeAdd(steps(110.0)),
        7 => ImageOp::Light(Light::Saturation, factor(signed)),
        8 => ImageOp::Light(Light::Contrast, factor(signed)),
        9 => ImageOp::Light(Light::Brightness, factor(signed)),
        10 => ImageOp::Sharpness(factor(signed)),
        11 => ImageOp::ShearX(signed(0.3)),
        12 => ImageOp::ShearY(signed(0.3)),
        13 => ImageOp::TranslateX(signed(0.45)),
        _ => ImageOp::TranslateY(signed(0.45)),
    }
}

/// Of light and sharpness: 1 changes nothing.
fn factor(signed: impl FnOnce(f64) -> f64) -> f64 {
    (1.0 + signed(0.9)).max(0.1)
}

/// timm's name.
impl FromStr for RandAugment {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let mut parts = name.split('-');
        if parts.next() != Some("rand") {
            return Err(format!("`{name}` is not of the form `rand-m9-mstd0.5-inc1`"));
        }
        let mut read = Self {
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
                .map_err(|_| format!("`{part}` in `{name}` is no letter with a number"))?;
            match key {
                "m" => read.magnitude = number,
                "mstd" => read.std = number,
                "mmax" => read.max = number,
                "n" => read.ops = number as usize,
                "p" => read.chance = number,
                "inc" => increasing = number == 1.0,
                _ => {
                    let known = "m, mstd, mmax, n, p, inc";
                    return Err(format!("unknown part `{part}` in `{name}`; there are {known}"));
                }
            }
        }
        if !increasing {
            return Err(format!(
                "`{name}` lacks `inc1`: there is only the set of changes that \
                                grow with the magnitude"
            ));
        }
        Ok(read)
    }
}

/// As a table.
impl Serialize for RandAugment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// From a table, or a name.
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
        // What serde derives for the table.
        RandAugment::deserialize(MapAccessDeserializer::new(map))
    }
}
