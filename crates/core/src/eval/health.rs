//! In how many directions features vary, and how large weights are: what tells a collapse before the loss does.

use std::collections::HashMap;

use data2vec_torch_ext::total_norm;
use rand::rngs::StdRng;
use rand::seq::index;
use tch::{Kind, Tensor};

use crate::loss::spread;
use crate::{Batch, Data2Vec, FeatureEncoder, Result};

/// Rows that an effective rank is measured on.
const ROWS: usize = 512;

/// Sequences of a batch that are looked at.
const SEQUENCES: usize = 16;

/// Share of all rows' norm below which f32 tells no direction.
const RESOLUTION: f64 = f32::EPSILON as f64;

/// What a model's insides look like. Undefined figures, of a single row or of what is not finite, are `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// [`effective_rank`] of the targets.
    pub target_rank: Option<f64>,
    /// The same of the output of each of the student's blocks, the first one first.
    pub block_ranks: Vec<Option<f64>>,
    /// The same of the tokens, before they know of each other: the local encoder's output.
    pub local_rank: Option<f64>,
    /// Its [`spread`].
    pub local_var: Option<f64>,
    /// Norm of all weights of the student's encoder.
    pub student_norm: Option<f64>,
    /// The same of the teacher's.
    pub teacher_norm: Option<f64>,
    /// Norm of the difference of the two.
    pub teacher_distance: Option<f64>,
}

impl<F: FeatureEncoder> Data2Vec<F> {
    /// Looks at some sequences of `batch`, whole and without dropout; `rng` says at which, and at which of
    /// their tokens. Nothing is drawn from LibTorch's generator.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) if the batch does not suit the feature encoder.
    pub fn health(&self, batch: &Batch, rng: &mut StdRng) -> Result<Health> {
        let precision = self.config().model.precision;
        precision.run(self.device(), || tch::no_grad(|| self.measure(batch, rng)))?
    }

    fn measure(&self, batch: &Batch, rng: &mut StdRng) -> Result<Health> {
        let some = batch.some(SEQUENCES, rng).to_device(self.device());
        let tokens = self.student().embed(&some, false)?; // (B, T, D)
        let seen = self.student().contextualize(&tokens, None, None);
        let target = self.target(&some, &tokens)?;
        let places = real_places(tokens.lengths(), tokens.num_tokens());
        let chosen = index::sample(rng, places.len(), places.len().min(ROWS));
        let chosen: Vec<i64> = chosen.iter().map(|i| places[i]).collect();
        let chosen = Tensor::from_slice(&chosen).to_device(self.device());
        let rows = |x: &Tensor| x.flatten(0, 1).index_select(0, &chosen); // (N, D)
        let rank = |x: &Tensor| effective_rank(&rows(x));
        let local = rows(&tokens.x);
        let local_var = Some(spread(&[local.shallow_clone()])?).filter(|var| var.is_finite());
        let (student, teacher) = (self.vars().variables(), self.teacher().variables());
        let [student_norm, teacher_norm, teacher_distance] = norms(&student, &teacher)?;
        Ok(Health {
            target_rank: rank(&target),
            block_ranks: seen.layers.iter().map(|layer| rank(&layer.out)).collect(),
            local_rank: effective_rank(&local),
            local_var,
            student_norm,
            teacher_norm,
            teacher_distance,
        })
    }
}

/// In how many directions rows `(N, D)` vary: exp(−Σ pᵢ ln pᵢ), where the pᵢ are the singular values of the rows
/// about their mean, divided by their sum (Roy and Vetterli 2007; RankMe, Garrido et al. 2023, has it without the mean
/// taken off). From 1 for rows along a line to min(N − 1, D) for rows that vary alike in all directions; 0 if all
/// rows are equal, to the precision of f32. `None` for fewer than two rows, and for what is not finite.
pub fn effective_rank(x: &Tensor) -> Option<f64> {
    // The CPU has f64 and a solver of small problems, and must not be waited for more than once.
    let x = x.detach().to_device(tch::Device::Cpu).to_kind(Kind::Double);
    let &[count, dim] = &x.size()[..] else { return None };
    let scale = x.square().sum(Kind::Double).double_value(&[]).sqrt();
    if count < 2 || dim < 1 || !scale.is_finite() {
        return None;
    }
    let x = &x - x.mean_dim(&[0_i64][..], true, Kind::Double);
    // Of the two products that have the squares of the singular values, the smaller one.
    let squares = if count < dim { x.matmul(&x.tr()) } else { x.tr().matmul(&x) };
    let squares = squares.f_linalg_eigvalsh("L").ok()?;
    let squares: Vec<f64> = (&squares).try_into().ok()?;
    let values = squares.into_iter().map(|square| square.max(0.0).sqrt());
    let values: Vec<f64> = values.filter(|value| *value > RESOLUTION * scale).collect();
    let sum: f64 = values.iter().sum();
    let entropy: f64 = values.iter().map(|value| value / sum).map(|p| -p * p.ln()).sum();
    Some(if values.is_empty() { 0.0 } else { entropy.exp() })
}

/// Norms of the student's weights that the teacher has as well, of the teacher's, and of their difference.
fn norms(
    student: &HashMap<String, Tensor>,
    teacher: &HashMap<String, Tensor>,
) -> Result<[Option<f64>; 3]> {
    let pair = |(name, t): (_, &Tensor)| {
        Some((name, student.get(name)?.shallow_clone(), t.to_kind(Kind::Float)))
    };
    let mut pairs: Vec<(&String, Tensor, Tensor)> = teacher.iter().filter_map(pair).collect();
    // Maps have no order, and sums of floats depend on it.
    pairs.sort_by(|a, b| a.0.cmp(b.0));
    let student: Vec<Tensor> = pairs.iter().map(|(_, s, _)| s.shallow_clone()).collect();
    let teacher: Vec<Tensor> = pairs.iter().map(|(_, _, t)| t.shallow_clone()).collect();
    // One by one: all differences at once would be as large as the model.
    let apart = pairs.iter().map(|(_, s, t)| total_norm(&[s - t]));
    let apart = apart.collect::<std::result::Result<Vec<_>, _>>()?;
    let norm = |list: &[Tensor]| -> Result<Option<f64>> {
        Ok(Some(total_norm(list)?.double_value(&[])).filter(|norm| norm.is_finite()))
    };
    Ok([norm(&student)?, norm(&teacher)?, norm(&apart)?])
}

/// Places of real tokens among those of all rows.
fn real_places(lengths: &[i64], tokens: i64) -> Vec<i64> {
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

    fn is(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-6)
    }

    #[test]
    fn ranks_by_hand() {
        // Rows e and -e along each axis: mean 0, and a covariance that is a multiple of the identity.
        let axes = Tensor::eye(5, (Kind::Float, Device::Cpu));
        let cross = Tensor::cat(&[axes.shallow_clone(), -&axes], 0) * 3.0 + 7.0;
        assert!(is(effective_rank(&cross), 5.0));
        assert!(is(effective_rank(&cross.tr().contiguous().tr()), 5.0));
        // Along a line, however far off, with fewer rows than columns and with more.
        assert!(is(rank(&[1.0, 2.0, 3.0, 3.0, 6.0, 9.0], 3), 1.0));
        assert!(is(rank(&[101.0, 2.0, 103.0, 4.0, 105.0, 6.0, 109.0, 10.0], 2), 1.0));
        // Two directions, alike: (±1, 0), (0, ±1) in the first two of four columns.
        let two = [1., 0., 5., 5., -1., 0., 5., 5., 0., 1., 5., 5., 0., -1., 5., 5.];
        assert!(is(rank(&two, 4), 2.0));
        // Singular values 3 and 1: p = 3/4 and 1/4.
        let expected = -(0.75 * 0.75_f64.ln() + 0.25 * 0.25_f64.ln());
        assert!(is(rank(&[3., 0., -3., 0., 0., 1., 0., -1.], 2), expected.exp()));
    }

    #[test]
    fn ranks_of_nothing() {
        assert_eq!(rank(&[0.1, 0.7, 0.1, 0.7, 0.1, 0.7], 2), Some(0.0), "equal rows");
        assert_eq!(rank(&[0.0; 6], 2), Some(0.0));
        assert_eq!(rank(&[1.0, 2.0], 2), None, "one row");
        assert_eq!(rank(&[1.0, f32::NAN, 1.0, 2.0], 2), None);
        assert_eq!(rank(&[1.0, f32::INFINITY, 1.0, 2.0], 2), None);
        // What f32 cannot tell from rounding is no direction.
        let x = Tensor::randn([64, 8], (Kind::Float, Device::Cpu)) * 1e-9 + 1.0;
        assert_eq!(effective_rank(&x), Some(0.0));
    }

    #[test]
    fn norms_by_hand() {
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
    fn padding_is_no_token_and_some_rows_are_cut_to_their_longest() {
        assert_eq!(real_places(&[2, 3, 1], 3), [0, 1, 3, 4, 5, 6]);
        let inputs = Tensor::arange(12, (Kind::Float, Device::Cpu)).reshape([3, 4]);
        let batch = Batch::padded(inputs, vec![2, 3, 1]).expect("a batch");
        let mut rng = StdRng::seed_from_u64(1);
        let all = batch.some(9, &mut rng);
        assert_eq!(all.inputs.size(), [3, 3]);
        assert_eq!(all.lengths(), Some(&[2, 3, 1][..]));
        let one = batch.some(1, &mut rng);
        assert_eq!(one.lengths(), None, "nothing of it is padded");
        assert!([1, 2, 3].contains(&one.inputs.size()[1]));
    }
}
