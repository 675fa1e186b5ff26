//! Pooled features of labelled examples, the input of a probe.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use data2vec_core::eval::probe::LabelledFeatures;
use data2vec_core::{
    Dataset, Encoder, EncoderOutput, FeatureEncoder, LabelledBatch, OnProgress, Targets,
};
use serde::{Serialize, Serializer};
use tch::{Device, Kind, Tensor};

use crate::labelled_batches::{BatchOptions, for_each_batch};

/// How the tokens of an example become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Reduction of the tokens of a part.
    pub reduce: Reduce,
    /// Parts of a sequence, or parts of each side of an image, whose vectors are joined. One vector
    /// for all tokens does not say where something is; raw pixels do.
    pub parts: i64,
}

/// A reduction of several tokens to one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// The mean of each channel.
    Mean,
    /// The maximum of each channel.
    Max,
}

impl Default for Pooling {
    fn default() -> Self {
        Self { reduce: Reduce::Mean, parts: 1 }
    }
}

/// Parses `mean`, `max`, `mean:N` or `max:N`.
impl FromStr for Pooling {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, parts) = text.split_once(':').unwrap_or((text, "1"));
        let reduce = match name {
            "mean" => Reduce::Mean,
            "max" => Reduce::Max,
            _ => bail!("must be mean, max, mean:N or max:N"),
        };
        let parts = parts.parse().ok().filter(|parts| (1..=MAX_PARTS).contains(parts));
        let parts = parts.with_context(|| format!("the parts must be from 1 to {MAX_PARTS}"))?;
        Ok(Self { reduce, parts })
    }
}

/// Largest number of parts.
const MAX_PARTS: i64 = 64;

impl Display for Pooling {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reduce {
            Reduce::Mean => "mean",
            Reduce::Max => "max",
        })?;
        if self.parts > 1 { write!(f, ":{}", self.parts) } else { Ok(()) }
    }
}

impl Serialize for Pooling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Pooling {
    /// Pools tokens `(B, T, D)` to `(B, parts · D)` f32, or `(B, parts² · D)` for a grid of tokens.
    fn pool(self, x: &Tensor, lengths: &[i64], grid: [i64; 2]) -> Tensor {
        let x = x.to_kind(Kind::Float);
        let masks = self.masks(lengths, x.size()[1], grid);
        let vectors = masks.iter().map(|mask| {
            let mask = mask.to_device(x.device()).unsqueeze(-1); // (B or 1, T, 1)
            match self.reduce {
                Reduce::Mean => {
                    let count = mask.sum_dim_intlist(&[1_i64][..], false, Kind::Float);
                    (&x * &mask).sum_dim_intlist(&[1_i64][..], false, Kind::Float) / count
                }
                Reduce::Max => {
                    x.masked_fill(&mask.logical_not(), f64::NEG_INFINITY).amax([1], false)
                }
            }
        });
        Tensor::cat(&vectors.collect::<Vec<_>>(), 1)
    }

    /// Returns the tokens of each part, `(B, T)` bool, or `(1, T)` for a grid.
    fn masks(self, lengths: &[i64], tokens: i64, [height, width]: [i64; 2]) -> Vec<Tensor> {
        let parts = self.parts;
        // Part i of n holds positions from ⌊i·len/n⌋ to ⌈(i + 1)·len/n⌉: none is empty.
        let holds = |part: i64, len: i64, at: i64| {
            part * len / parts <= at && at * parts < (part + 1) * len
        };
        let mask = |rows: usize, of: &dyn Fn(usize, i64) -> bool| {
            let values: Vec<bool> =
                (0..rows).flat_map(|row| (0..tokens).map(move |at| of(row, at))).collect();
            Tensor::from_slice(&values).reshape([rows as i64, tokens])
        };
        if height == 1 {
            let of_sequence = |part: i64| {
                mask(lengths.len(), &|row, at| at < lengths[row] && holds(part, lengths[row], at))
            };
            return (0..parts).map(of_sequence).collect();
        }
        let of_grid = |part: i64| {
            let [i, j] = [part / parts, part % parts];
            mask(1, &|_, at| holds(i, height, at / width) && holds(j, width, at % width))
        };
        (0..parts * parts).map(of_grid).collect()
    }
}

/// Pools features of examples from the output of some blocks.
pub struct Pooled<'a, F> {
    /// The encoder.
    pub encoder: &'a Encoder<F>,
    /// Blocks, counted from 1.
    pub layers: &'a [usize],
    /// How tokens become one vector.
    pub pooling: Pooling,
    /// The device of the encoder.
    pub device: Device,
}

/// Features of some examples of a data set.
pub struct PooledExamples {
    /// The examples, by index.
    pub indices: Vec<usize>,
    /// Their features for each of the layers.
    pub layers: Vec<LabelledFeatures>,
}

impl<F: FeatureEncoder> Pooled<'_, F> {
    /// Returns features of the examples of `data`; of at most `limit` random ones.
    ///
    /// # Errors
    /// If there is no usable example, or labels are not classes.
    pub fn of<D: Dataset<Batch = LabelledBatch>>(
        &self,
        data: &D,
        limit: usize,
        seed: u64,
        progress: OnProgress,
    ) -> Result<PooledExamples> {
        let mut features: Vec<Vec<Tensor>> = self.layers.iter().map(|_| Vec::new()).collect();
        let (mut labels, mut all) = (Vec::new(), Vec::new());
        let options = BatchOptions { budget: None, limit, seed };
        for_each_batch(data, options, progress, |indices, batch| {
            let Targets::Classes(classes) = &batch.targets else {
                bail!("a probe needs classes; the examples have other labels");
            };
            let hidden = self.encoder.forward(&batch.batch.to_device(self.device))?;
            for (parts, &layer) in features.iter_mut().zip(self.layers) {
                parts.push(self.pool(&hidden, layer)); // (B, P)
            }
            labels.push(classes.to_device(self.device));
            all.extend_from_slice(indices);
            Ok(())
        })?;
        let labels = Tensor::cat(&labels, 0);
        let pooled = |parts: Vec<Tensor>| {
            LabelledFeatures::new(Tensor::cat(&parts, 0), labels.shallow_clone())
        };
        let layers = features.into_iter().map(pooled).collect::<data2vec_core::Result<_>>()?;
        Ok(PooledExamples { indices: all, layers })
    }

    fn pool(&self, hidden: &EncoderOutput, layer: usize) -> Tensor {
        self.pooling.pool(&hidden.layers[layer - 1].out, &hidden.lengths, hidden.grid)
    }
}

/// Checks that labels are of at least two classes.
///
/// # Errors
/// If they are not: a probe of one class is always right.
pub fn check_classes(count: usize) -> Result<()> {
    ensure!(count > 1, "a probe needs at least two classes; there is {count}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(x: &Tensor) -> Vec<f64> {
        x.flatten(0, -1).try_into().expect("numbers")
    }

    fn pooling(text: &str) -> Pooling {
        text.parse().expect("a pooling")
    }

    #[test]
    fn pools_sequences_by_hand() {
        // Rows 1 2 3 6 and 5 7, the rest is padding.
        let x = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 6.0, 5.0, 7.0, 99.0, 99.0]);
        let x = x.reshape([2, 4, 1]);
        let pool = |text: &str| values(&pooling(text).pool(&x, &[4, 2], [1, 4]));
        assert_eq!(pool("mean"), [3.0, 6.0]);
        assert_eq!(pool("max"), [6.0, 7.0]);
        assert_eq!(pool("mean:2"), [1.5, 4.5, 5.0, 7.0]);
        // A row of two tokens in three parts: tokens 0, 0 and 1, 1.
        assert_eq!(pool("max:3"), [2.0, 3.0, 6.0, 5.0, 7.0, 7.0]);
    }

    #[test]
    fn pools_grids_by_hand() {
        // 2 × 3 tokens: 1 2 3 / 4 5 6.
        let x = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([1, 6, 1]) + 1.0;
        let pool = |text: &str| values(&pooling(text).pool(&x, &[6], [2, 3]));
        assert_eq!(pool("mean"), [3.5]);
        assert_eq!(pool("mean:2"), [1.5, 2.5, 4.5, 5.5]);
        assert_eq!(pool("max:3").len(), 9);
    }

    #[test]
    fn parses_poolings() {
        for text in ["mean", "max", "mean:2", "max:7"] {
            assert_eq!(pooling(text).to_string(), text);
        }
        for wrong in ["", "cls", "mean:0", "mean:65", "max:x", ":2"] {
            assert!(wrong.parse::<Pooling>().is_err(), "{wrong}");
        }
    }
}
