//! Explained variance of predictions, in total and apart from what a token's position explains.

use tch::{Device, Kind, Tensor};

use crate::data::batch::upload;
use crate::method::data2vec::{Objective, StudentInput};

/// Explained variance (R²) of predictions at masked tokens, over any number of batches.
///
/// A model can predict well and know nothing of its input: where targets depend on the position of a
/// token, positions alone explain them. So the variance of the targets is split in two: that of the
/// mean target at each position, and the rest, which only content can explain.
#[derive(Debug, Default)]
pub struct ExplainedVariance {
    /// Number of masked tokens.
    count: f64,
    /// Sum and sum of squares of the targets of masked tokens, `(D)` f64 each.
    sums: Option<[Tensor; 2]>,
    /// Statistics by position, `(T)` or `(T, D)` f64; grows with the longest batch.
    positions: Option<Positions>,
}

/// Statistics of the tokens at each position.
#[derive(Debug)]
struct Positions {
    /// Real tokens, masked or not: number `(T)`, sum and sum of squares of their targets `(T, D)`.
    tokens: Tensor,
    sum: Tensor,
    square: Tensor,
    /// Masked tokens: number and squared error, `(T)` each.
    masked: Tensor,
    error: Tensor,
}

impl ExplainedVariance {
    /// Adds what a model predicted for `input`, whose targets are `target` `(B, T, D)`
    /// ([`Data2Vec::comparable_target`](crate::Data2Vec::comparable_target)).
    pub fn add(&mut self, input: &StudentInput, target: &Tensor, objective: &Objective) {
        let target = target.detach().to_kind(Kind::Double); // (B, T, D)
        let [rows, len, dim] = [0, 1, 2].map(|axis| target.size()[axis]);
        let copies = input.tokens.x.size()[0] / rows;
        let device = target.device();
        let real = match &input.tokens.padding {
            Some(padding) => {
                let padding = padding.slice(0, 0, None, copies); // (B, T)
                padding.logical_not().to_kind(Kind::Double).unsqueeze(-1) // (B, T, 1)
            }
            None => Tensor::ones([rows, len, 1], (Kind::Double, device)),
        };
        let over_rows = |x: &Tensor| x.sum_dim_intlist(&[0_i64][..], false, Kind::Double);

        let masked = objective.target.detach().to_kind(Kind::Double); // (N, D)
        let error = objective.prediction.detach().to_kind(Kind::Double) - &masked;
        let error = error.square().sum_dim_intlist(&[1_i64][..], false, Kind::Double); // (N)
        let index = Tensor::arange(len, (Kind::Int64, Device::Cpu)).repeat([rows, 1]);
        let index = input.mask.gather(&upload(&index.unsqueeze(-1), device), copies); // (N, 1)
        let at_positions = |x: &Tensor| {
            let zeros = Tensor::zeros([len], (Kind::Double, device));
            zeros.index_add(0, &index.flatten(0, 1), x) // (T)
        };

        self.count += masked.size()[0] as f64;
        let new = [over_rows(&masked), over_rows(&masked.square())];
        self.sums = Some(match self.sums.take() {
            Some([sum, square]) => [sum + &new[0], square + &new[1]],
            None => new,
        });
        let positions = self.positions.get_or_insert_with(|| Positions::new(dim, device));
        positions.add(Positions {
            tokens: over_rows(&real).flatten(0, 1),
            sum: over_rows(&(&target * &real)),
            square: over_rows(&(target.square() * &real)),
            masked: at_positions(&error.ones_like()),
            error: at_positions(&error),
        });
    }

    /// Returns 1 − Σ(prediction − target)² / Σ(target − mean target)². `None` before anything was
    /// added, or if all targets are equal.
    ///
    /// The best constant reaches 0. Unlike the loss, it cannot be improved by shrinking the targets.
    pub fn value(&self) -> Option<f64> {
        let error = total(&self.positions.as_ref()?.error);
        let variance = self.variance()?;
        (variance > 0.0).then(|| 1.0 - error / self.count / variance)
    }

    /// Returns the share of the targets' variance that the mean target at each position explains.
    /// `None` if no position has two tokens, or all targets are equal.
    ///
    /// Variances are unbiased: with few examples, a mean for each position explains no more than
    /// with many.
    pub fn by_position(&self) -> Option<f64> {
        let (within, _, count) = self.within_positions()?;
        let variance = self.variance().filter(|variance| *variance > 0.0)?;
        Some(1.0 - within / count / variance)
    }

    /// Returns the explained variance within positions: 1 − Σ(prediction − target)² / Σ(target −
    /// mean target at its position)². `None` if no position has two tokens, or targets depend on the
    /// position alone.
    ///
    /// A model that learned positions alone reaches 0, one that predicts a constant less.
    pub fn content(&self) -> Option<f64> {
        let (within, error, _) = self.within_positions()?;
        (within > 0.0).then(|| 1.0 - error / within)
    }

    /// Returns the mean squared distance of the targets of masked tokens from their mean, summed
    /// over channels.
    fn variance(&self) -> Option<f64> {
        let [sum, square] = self.sums.as_ref()?;
        Some(total(&(square / self.count - (sum / self.count).square())))
    }

    /// Returns, for masked tokens at positions with at least two tokens: the expected sum of squared
    /// distances from the mean target at the position, the sum of squared errors, and their number.
    fn within_positions(&self) -> Option<(f64, f64, f64)> {
        let Positions { tokens, sum, square, masked, error } = self.positions.as_ref()?;
        let known = tokens.gt(1.5).to_kind(Kind::Double); // (T)
        let count = total(&(masked * &known));
        let mean = sum / tokens.clamp_min(1.0).unsqueeze(-1); // (T, D)
        let squares = (square - sum * mean).sum_dim_intlist(&[1_i64][..], false, Kind::Double);
        let variance = squares.clamp_min(0.0) / (tokens - 1.0).clamp_min(1.0); // (T)
        (count > 0.0)
            .then(|| (total(&(variance * masked * &known)), total(&(error * &known)), count))
    }
}

impl Positions {
    fn new(dim: i64, device: Device) -> Self {
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Double, device));
        Self {
            tokens: zeros(&[0]),
            sum: zeros(&[0, dim]),
            square: zeros(&[0, dim]),
            masked: zeros(&[0]),
            error: zeros(&[0]),
        }
    }

    fn add(&mut self, other: Self) {
        let len = self.tokens.size()[0].max(other.tokens.size()[0]);
        let sum = |a: &mut Tensor, b: Tensor| *a = lengthen(a, len) + lengthen(&b, len);
        sum(&mut self.tokens, other.tokens);
        sum(&mut self.sum, other.sum);
        sum(&mut self.square, other.square);
        sum(&mut self.masked, other.masked);
        sum(&mut self.error, other.error);
    }
}

/// Appends zeros along the first dimension, up to `len`.
fn lengthen(x: &Tensor, len: i64) -> Tensor {
    let mut size = x.size();
    size[0] = len - size[0];
    Tensor::cat(&[x, &Tensor::zeros(size, (x.kind(), x.device()))], 0)
}

fn total(x: &Tensor) -> f64 {
    x.sum(Kind::Double).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batch::Tokens;
    use crate::method::mask::Mask;
    use ndarray::Array2;

    /// Returns what `explained` says of predictions `predict(targets)`, with targets `position +
    /// content` of `rows` rows in parts of four, all but the first token masked.
    fn explained(
        rows: i64,
        content: f64,
        predict: impl Fn(&Tensor) -> Tensor,
    ) -> ExplainedVariance {
        tch::manual_seed(1);
        let (len, dim) = (6, 8);
        let options = (Kind::Float, Device::Cpu);
        let position = Tensor::randn([1, len, dim], options);
        let mut explained = ExplainedVariance::default();
        for _ in 0..rows / 4 {
            let target = &position + content * Tensor::randn([4, len, dim], options);
            let masked = Array2::from_shape_fn((4, len as usize), |(_, t)| t > 0);
            let mask = Mask::new(masked).expect("equal counts");
            let prediction = mask.gather(&predict(&target).expand_as(&target), 1);
            let objective = Objective {
                loss: Tensor::from(0.0),
                num_masked: mask.num_masked(),
                masked_share: 0.0,
                prediction,
                target: mask.gather(&target, 1),
            };
            let tokens = Tokens::new(target.shallow_clone(), None);
            let input = StudentInput { tokens, mask, target, noise: None };
            explained.add(&input, &input.target, &objective);
        }
        explained
    }

    fn position_mean(target: &Tensor) -> Tensor {
        target.mean_dim(&[0_i64][..], true, Kind::Float)
    }

    #[test]
    fn is_one_if_perfect_and_zero_for_the_mean() {
        let perfect = explained(40, 1.0, Tensor::shallow_clone);
        for value in [perfect.value(), perfect.content()] {
            assert!((value.expect("targets vary") - 1.0).abs() < 1e-9);
        }
        assert_eq!(ExplainedVariance::default().value(), None);
        assert_eq!(ExplainedVariance::default().by_position(), None);
        let constant = explained(40, 0.0, |target| target.zeros_like());
        assert_eq!(constant.content(), None, "nothing but positions");
        assert!((constant.by_position().expect("targets vary") - 1.0).abs() < 1e-9);
    }

    #[test]
    fn positions_do_not_count_as_content() {
        // Means over the four rows of a part have a quarter of the noise of one row.
        let learned_positions = explained(4_000, 0.5, position_mean);
        let by_position = learned_positions.by_position().expect("targets vary");
        assert!((0.6..0.95).contains(&by_position), "{by_position}");
        let value = learned_positions.value().expect("targets vary");
        assert!(value > 0.7, "{value}");
        let content = learned_positions.content().expect("targets vary");
        assert!((content - 0.25).abs() < 0.02, "{content}");
        let identity = (1.0 - value) / (1.0 - by_position);
        assert!((1.0 - content - identity).abs() < 1e-3, "{content}, {identity}");
    }

    #[test]
    fn few_examples_do_not_look_like_positions() {
        // Without any effect of positions, 8 rows must not show one: plain shares of variance would
        // show 1/8.
        let few = explained(8, 1e3, |target| target.zeros_like());
        let by_position = few.by_position().expect("targets vary");
        assert!(by_position.abs() < 0.1, "{by_position}");
        let content = few.content().expect("targets vary");
        assert!(content.abs() < 0.1, "{content}");
    }

    #[test]
    fn masked_copies_and_padding_count_once() {
        // Two rows, two copies each. Targets of one channel: positions 0 to 2 of row 0 are 1, 2, 5;
        // row 1 has 3, 4 and one token of padding.
        let target = Tensor::from_slice(&[1.0_f32, 2.0, 5.0, 3.0, 4.0, 9.0]).reshape([2, 3, 1]);
        let tokens =
            Tokens::new(Tensor::zeros([2, 3, 1], (Kind::Float, Device::Cpu)), Some(vec![3, 2]));
        let tokens = tokens.repeat(2);
        let masked =
            [[true, false, true], [true, true, false], [true, false, false], [false, true, false]];
        let mask = Mask::new(Array2::from(masked.to_vec())).expect("a mask");
        let gathered = mask.gather(&target, 2);
        let objective = Objective {
            loss: Tensor::from(0.0),
            num_masked: mask.num_masked(),
            masked_share: 0.0,
            prediction: &gathered + 0.5,
            target: gathered,
        };
        let mut explained = ExplainedVariance::default();
        let input = StudentInput { tokens, mask, target, noise: None };
        explained.add(&input, &input.target, &objective);
        // Position 0: 1 and 3, variance 2, masked three times. Position 1: 2 and 4, variance 2,
        // masked twice. Position 2: one token, left out.
        let content = explained.content().expect("targets vary");
        assert!((content - (1.0 - 5.0 * 0.25 / 10.0)).abs() < 1e-9, "{content}");
        // Masked: 1, 5, 1, 2, 3, 4: mean 8/3, variance 56/6 − 64/9 = 20/9.
        let value = explained.value().expect("targets vary");
        assert!((value - (1.0 - 0.25 / (20.0 / 9.0))).abs() < 1e-9, "{value}");
        let by_position = explained.by_position().expect("targets vary");
        assert!((by_position - (1.0 - 2.0 / (20.0 / 9.0))).abs() < 1e-9, "{by_position}");
    }
}
