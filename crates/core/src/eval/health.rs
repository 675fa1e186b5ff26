//! Health metrics of pretraining: effective ranks and weight norms, which show a collapse before
//! the loss does.

use std::collections::HashMap;

use data2vec_torch_ext::total_norm;
use rand::rngs::StdRng;
use rand::seq::index;
use tch::{Kind, Tensor};

use crate::method::loss::mean_std;
use crate::{Batch, Data2Vec, FeatureEncoder, Result};

/// Largest number of rows on which an effective rank is measured.
const ROWS: usize = 512;

/// Largest number of sequences of a batch that are measured.
const SEQUENCES: usize = 16;

/// Relative size of singular values below which f32 rounding dominates.
const RESOLUTION: f64 = f32::EPSILON as f64;

/// Health metrics of a model. A metric is `None` if it is undefined: for a single row or values
/// that are not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// [`effective_rank`] of the targets.
    pub target_rank: Option<f64>,
    /// [`effective_rank`] of the output of each block of the student, in order.
    pub block_ranks: Vec<Option<f64>>,
    /// [`effective_rank`] of the tokens before the transformer: the output of the local encoder.
    pub local_rank: Option<f64>,
    /// Mean standard deviation of the output of the local encoder.
    pub local_std: Option<f64>,
    /// Norm of the weights of the student's encoder that the teacher has, too.
    pub student_norm: Option<f64>,
    /// Norm of the teacher's weights.
    pub teacher_norm: Option<f64>,
    /// Norm of the difference of student and teacher.
    pub teacher_distance: Option<f64>,
}

impl<F: FeatureEncoder> Data2Vec<F> {
    /// Measures health metrics on sequences and tokens of `batch` that `rng` samples.
    ///
    /// Nothing is masked, dropout is off, and LibTorch's generator is not used.
    ///
    /// # Errors
    /// Returns [`Error::Input`](crate::Error::Input) if the batch does not fit the feature encoder.
    pub fn health(&self, batch: &Batch, rng: &mut StdRng) -> Result<Health> {
        let precision = self.config().model.precision;
        precision.run(self.device(), || tch::no_grad(|| self.measure(batch, rng)))?
    }

    fn measure(&self, batch: &Batch, rng: &mut StdRng) -> Result<Health> {
        let batch = batch.sample_rows(SEQUENCES, rng).to_device(self.device());
        let tokens = self.student().embed(&batch, false)?; // (B, T, D)
        let hidden = self.student().contextualize(&tokens, None, None)?;
        let target = self.target(&batch, &tokens)?; // (B, T, D)
        let real = real_token_indices(tokens.lengths(), tokens.num_tokens());
        let chosen = index::sample(rng, real.len(), real.len().min(ROWS));
        let chosen: Vec<i64> = chosen.iter().map(|i| real[i]).collect();
        let chosen = Tensor::from_slice(&chosen).to_device(self.device());
        let rows = |x: &Tensor| x.flatten(0, 1).index_select(0, &chosen); // (N, D)
        let rank = |x: &Tensor| effective_rank(&rows(x));
        let local = rows(&tokens.x);
        let local_std = Some(mean_std(&[local.shallow_clone()])?).filter(|var| var.is_finite());
        let (student, teacher) = (self.vars().variables(), self.teacher().variables());
        let [student_norm, teacher_norm, teacher_distance] = norms(&student, &teacher)?;
        Ok(Health {
            target_rank: effective_rank(&self.comparable_target(&rows(&target))),
            block_ranks: hidden.layers.iter().map(|layer| rank(&layer.out)).collect(),
            local_rank: effective_rank(&local),
            local_std,
            student_norm,
            teacher_norm,
            teacher_distance,
        })
    }
}

/// Computes the effective rank of the rows `x` `(N, D)`: exp(−Σ pᵢ ln pᵢ), where pᵢ are the
/// singular values of the centred rows divided by their sum.
///
/// Roy and Vetterli 2007; RankMe (Garrido et al. 2023) does not centre the rows. The value is 1 for
/// rows along a line, min(N − 1, D) for rows of equal variance in all directions, and 0 if all rows
/// are equal within the precision of f32. Returns `None` for fewer than two rows or values that are
/// not finite.
pub fn effective_rank(x: &Tensor) -> Option<f64> {
    // On the CPU: f64 and fast solvers of small problems, for a single device sync.
    let x = x.detach().to_device(tch::Device::Cpu).to_kind(Kind::Double);
    let &[count, dim] = &x.size()[..] else { return None };
    let scale = x.square().sum(Kind::Double).double_value(&[]).sqrt();
    if count < 2 || dim < 1 || !scale.is_finite() {
        return None;
    }
    let x = &x - x.mean_dim(&[0_i64][..], true, Kind::Double);
    // The smaller of the two Gram matrices; its eigenvalues are the squared singular values.
    let squares = if count < dim { x.matmul(&x.tr()) } else { x.tr().matmul(&x) };
    let squares = squares.f_linalg_eigvalsh("L").ok()?;
    let squares: Vec<f64> = (&squares).try_into().ok()?;
    let values = squares.into_iter().map(|square| square.max(0.0).sqrt());
    let values: Vec<f64> = values.filter(|value| *value > RESOLUTION * scale).collect();
    let sum: f64 = values.iter().sum();
    let entropy: f64 = values.iter().map(|value| value / sum).map(|p| -p * p.ln()).sum();
    Some(if values.is_empty() { 0.0 } else { entropy.exp() })
}

/// Returns the norms of the student's weights that the teacher has, of the teacher's weights, and
/// of their difference.
fn norms(
    student: &HashMap<String, Tensor>,
    teacher: &HashMap<String, Tensor>,
) -> Result<[Option<f64>; 3]> {
    let pair = |(name, t): (_, &Tensor)| {
        Some((name, student.get(name)?.shallow_clone(), t.to_kind(Kind::Float)))
    };
    let mut pairs: Vec<(&String, Tensor, Tensor)> = teacher.iter().filter_map(pair).collect();
    // Sorted: floating-point sums depend on the order, which a hash map does not define.
    pairs.sort_by(|a, b| a.0.cmp(b.0));
    let student: Vec<Tensor> = pairs.iter().map(|(_, s, _)| s.shallow_clone()).collect();
    let teacher: Vec<Tensor> = pairs.iter().map(|(_, _, t)| t.shallow_clone()).collect();
    // One at a time: all differences together would need the memory of the model.
    let differences = pairs.iter().map(|(_, s, t)| total_norm(&[s - t]));
    let differences = differences.collect::<std::result::Result<Vec<_>, _>>()?;
    let norm = |list: &[Tensor]| -> Result<Option<f64>> {
        Ok(Some(total_norm(list)?.double_value(&[])).filter(|norm| norm.is_finite()))
    };
    Ok([norm(&student)?, norm(&teacher)?, norm(&differences)?])
}

/// Returns the indices of real tokens in the flattened `(B·T)`.
fn real_token_indices(lengths: &[i64], tokens: i64) -> Vec<i64> {
    let row = |(row, &length): (i64, &i64)| row * tokens..row * tokens + length;
    (0..).zip(lengths).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use tch::Device;

    fn rank(rows: &[f32], dim: i64) -> Option<f64> {
        effective_rank(&Tensor::from_slice(rows).reshape([-1, dim]))
    }

    fn close(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-6)
    }

    #[test]
    fn effective_rank_of_known_spectra() {
        // Rows e and -e along each axis: mean 0, and a covariance that is a multiple of the
        // identity.
        let axes = Tensor::eye(5, (Kind::Float, Device::Cpu));
        let cross = Tensor::cat(&[axes.shallow_clone(), -&axes], 0) * 3.0 + 7.0;
        assert!(close(effective_rank(&cross), 5.0));
        assert!(close(effective_rank(&cross.tr().contiguous().tr()), 5.0));
        // Along a line that misses the origin, with fewer rows than columns and with more.
        assert!(close(rank(&[1.0, 2.0, 3.0, 3.0, 6.0, 9.0], 3), 1.0));
        assert!(close(rank(&[101.0, 2.0, 103.0, 4.0, 105.0, 6.0, 109.0, 10.0], 2), 1.0));
        // Two directions of equal variance: (±1, 0), (0, ±1) in the first two of four columns.
        let two = [1., 0., 5., 5., -1., 0., 5., 5., 0., 1., 5., 5., 0., -1., 5., 5.];
        assert!(close(rank(&two, 4), 2.0));
        // Singular values 3 and 1: p = 3/4 and 1/4.
        let expected = -(0.75 * 0.75_f64.ln() + 0.25 * 0.25_f64.ln());
        assert!(close(rank(&[3., 0., -3., 0., 0., 1., 0., -1.], 2), expected.exp()));
    }

    #[test]
    fn effective_rank_of_degenerate_input() {
        assert_eq!(rank(&[0.1, 0.7, 0.1, 0.7, 0.1, 0.7], 2), Some(0.0), "equal rows");
        assert_eq!(rank(&[0.0; 6], 2), Some(0.0));
        assert_eq!(rank(&[1.0, 2.0], 2), None, "one row");
        assert_eq!(rank(&[1.0, f32::NAN, 1.0, 2.0], 2), None);
        assert_eq!(rank(&[1.0, f32::INFINITY, 1.0, 2.0], 2), None);
        // Variation at the level of f32 rounding does not count.
        let x = Tensor::randn([64, 8], (Kind::Float, Device::Cpu)) * 1e-9 + 1.0;
        assert_eq!(effective_rank(&x), Some(0.0));
    }

    #[test]
    fn norms_of_shared_weights() {
        let named = |pairs: &[(&str, f32)]| -> HashMap<String, Tensor> {
            let one =
                |(name, value): &(&str, f32)| ((*name).to_owned(), Tensor::from_slice(&[*value]));
            pairs.iter().map(one).collect()
        };
        let student = named(&[("a", 3.0), ("b", 4.0), ("decoder", 100.0)]);
        let teacher = named(&[("a", 0.0), ("b", 8.0)]);
        assert_eq!(norms(&student, &teacher).expect("tensors"), [Some(5.0), Some(8.0), Some(5.0)]);
        let broken = named(&[("a", f32::NAN), ("b", 8.0)]);
        assert_eq!(norms(&student, &broken).expect("tensors"), [Some(5.0), None, None]);
    }

    #[test]
    fn skips_padding_and_trims_sampled_rows() {
        assert_eq!(real_token_indices(&[2, 3, 1], 3), [0, 1, 3, 4, 5, 6]);
        let inputs = Tensor::arange(12, (Kind::Float, Device::Cpu)).reshape([3, 4]);
        let batch = Batch::padded(inputs, vec![2, 3, 1]).expect("a batch");
        let mut rng = StdRng::seed_from_u64(1);
        let all = batch.sample_rows(9, &mut rng);
        assert_eq!(all.inputs.size(), [3, 3]);
        assert_eq!(all.lengths(), Some(&[2, 3, 1][..]));
        let one = batch.sample_rows(1, &mut rng);
        assert_eq!(one.lengths(), None, "a single row has no padding");
        assert!([1, 2, 3].contains(&one.inputs.size()[1]));
    }
}
