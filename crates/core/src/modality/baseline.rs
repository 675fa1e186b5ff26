//! Features of the raw input: the baseline that frozen features of an encoder must beat.

use rand::SeedableRng;
use rand::rngs::StdRng;
use tch::{Kind, Tensor};

use crate::data::batch::{Batch, LabelledBatch};
use crate::data::dataset::Dataset;
use crate::error::Result;

/// Features of the raw input of training and of test examples, `(N, P)` f32 each.
#[derive(Debug)]
pub struct RawFeatures {
    /// What they are, as in "standardised pixels".
    pub name: &'static str,
    /// Features of the training examples.
    pub train: Tensor,
    /// Features of the test examples.
    pub test: Tensor,
}

/// Some examples of a data set, by index.
pub type Examples<'a, D> = (&'a D, &'a [usize]);

/// Computes features `(1, P)` of each example alone, and standardises them by mean and standard
/// deviation of the training examples.
///
/// # Errors
/// If an example cannot be read, and what `features` returns.
pub fn standardized<D: Dataset<Batch = LabelledBatch>>(
    name: &'static str,
    train: Examples<D>,
    test: Examples<D>,
    features: impl Fn(&Batch) -> Result<Tensor>,
) -> Result<RawFeatures> {
    let of = |(dataset, indices): Examples<D>| -> Result<Tensor> {
        let mut rng = StdRng::seed_from_u64(0); // nothing is augmented
        let rows = indices.iter().map(|&index| {
            let example = dataset.load(index, &mut rng)?;
            features(&dataset.collate(vec![example], &mut rng)?.batch)
        });
        Ok(Tensor::f_cat(&rows.collect::<Result<Vec<_>>>()?, 0)?.to_kind(Kind::Float))
    };
    let (train, test) = (of(train)?, of(test)?); // (N, P)
    let (variance, mean) = train.var_mean_correction(&[0_i64][..], 0, true); // (1, P)
    let scale = (variance + 1e-12).rsqrt();
    // A feature that never varies in training says nothing in a test.
    let scale = scale.where_self(&scale.lt(1e5), &scale.zeros_like());
    let standardize = |x: &Tensor| (x - &mean) * &scale;
    Ok(RawFeatures { name, train: standardize(&train), test: standardize(&test) })
}
