//! The losses, and the statistics that tell a healthy run from a collapsed one.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use crate::data::batch::{Tokens, upload};
use crate::error::{Error, Result};
use crate::method::mask::Mask;
use crate::model::head::mean_over_tokens;

/// Smooth L1 or squared error between prediction and target, summed. The default is 2.0's: squared
/// error, divided by √D.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegressionLoss {
    /// Where smooth L1 changes from quadratic to linear (data2vec 1.0, eq. 4); 0: squared error.
    pub beta: f64,
    /// Factor of the sum over channels (D); absent: 1/√D.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Weight of the CLS loss ([`Loss::cls`]), a mean over rows beside the mean over masked tokens;
    /// absent: none.
    ///
    /// fairseq's weight counts once for each row on a GPU: its 0.01 with 16 inputs × 16 copies is
    /// 2.56 here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cls: Option<f64>,
}

impl RegressionLoss {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if !(self.beta >= 0.0) {
            return Err(Error::config("loss.beta", format!("{} is below 0", self.beta)));
        }
        if let Some(weight) = self.cls.filter(|w| !(*w > 0.0)) {
            let reason = format!("{weight} is not above 0; leave it out for no such loss");
            return Err(Error::config("loss.cls", reason));
        }
        match self.scale {
            Some(scale) if !(scale > 0.0) => {
                let reason = format!("{scale} is not above 0; leave it out for 1/√dim");
                Err(Error::config("loss.scale", reason))
            }
            _ => Ok(()),
        }
    }

    fn reduced(&self, prediction: &Tensor, target: &Tensor, reduction: Reduction) -> Tensor {
        let (prediction, target) = (prediction.to_kind(Kind::Float), target.to_kind(Kind::Float));
        let loss = if self.beta == 0.0 {
            prediction.mse_loss(&target, reduction)
        } else {
            prediction.smooth_l1_loss(&target, reduction, self.beta)
        };
        let dim = target.size().last().copied().unwrap_or(1) as f64;
        loss * self.scale.unwrap_or(dim.powf(-0.5))
    }
}

/// Compares predictions with targets. [`RegressionLoss`] is the paper's; implement it for a loss of
/// your own and pass it in [`Parts`](crate::Parts).
pub trait Loss: Debug + Send {
    /// Returns `(N)` f32: the loss of each row of `(N, D)`.
    fn rows(&self, prediction: &Tensor, target: &Tensor) -> Tensor;

    /// Returns predictions `(N, D)` and targets as numbers whose squared difference is the error, for
    /// metrics only. The default returns them as they are.
    fn comparable(&self, prediction: &Tensor, target: &Tensor) -> (Tensor, Tensor) {
        (prediction.shallow_clone(), self.comparable_target(target))
    }

    /// Returns the targets of [`comparable`](Self::comparable); any dimensions before the last.
    fn comparable_target(&self, target: &Tensor) -> Tensor {
        target.shallow_clone()
    }

    /// Returns a scalar f32: the loss summed over rows. It is divided by the number of masked tokens
    /// once, after the last micro-batch: a mean of means is not the large batch's gradient.
    fn sum(&self, prediction: &Tensor, target: &Tensor) -> Tensor {
        self.rows(prediction, target).sum(Kind::Float)
    }

    /// Returns the CLS loss (2.0, section 3.2), a scalar f32: the last token of `prefix`
    /// `(B·M, P, D)` predicts the mean over time of `target` `(B, T, D)`. Each row counts as often as
    /// it has masked tokens, so that divided by their number it is a mean over rows.
    fn cls(&self, prefix: &Tensor, target: &Tensor, tokens: &Tokens, mask: &Mask) -> Tensor {
        let copies = tokens.x.size()[0] / target.size()[0];
        let counts = upload(&Tensor::from_slice(&mask.counts()), target.device()); // (B·M)
        let cls = prefix.select(1, -1); // (B·M, D)
        let padding = tokens.padding.as_ref().map(|p| p.slice(0, 0, None, copies)); // (B, T)
        let mean = mean_over_tokens(target, padding.as_ref()); // (B, D)
        let mean = mean.repeat_interleave_self_int(copies, 0, None); // (B·M, D)
        (self.rows(&cls, &mean) * counts).sum(Kind::Float)
    }
}

impl Loss for RegressionLoss {
    fn rows(&self, prediction: &Tensor, target: &Tensor) -> Tensor {
        let each = self.reduced(prediction, target, Reduction::None); // (N, D)
        each.sum_dim_intlist(&[-1_i64][..], false, Kind::Float)
    }

    fn sum(&self, prediction: &Tensor, target: &Tensor) -> Tensor {
        self.reduced(prediction, target, Reduction::Sum)
    }
}

/// Cross-entropy between logits `(N, V)` and class ids `(N, 1)`, as in BERT (Devlin et al. 2019).
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Number of classes (V).
    pub classes: i64,
    /// Factor of the loss.
    pub scale: f64,
}

impl CrossEntropy {
    fn reduced(&self, prediction: &Tensor, target: &Tensor, reduction: Reduction) -> Tensor {
        let (logits, ids) = (prediction.to_kind(Kind::Float), target.squeeze_dim(-1));
        let no_weights: Option<Tensor> = None;
        logits.cross_entropy_loss(&ids, no_weights, reduction, -100, 0.0) * self.scale
    }
}

impl Loss for CrossEntropy {
    fn rows(&self, prediction: &Tensor, target: &Tensor) -> Tensor {
        self.reduced(prediction, target, Reduction::None)
    }

    fn sum(&self, prediction: &Tensor, target: &Tensor) -> Tensor {
        self.reduced(prediction, target, Reduction::Sum)
    }

    /// Returns probabilities and one-hot targets.
    fn comparable(&self, prediction: &Tensor, target: &Tensor) -> (Tensor, Tensor) {
        (prediction.softmax(-1, Kind::Float), self.comparable_target(target))
    }

    fn comparable_target(&self, target: &Tensor) -> Tensor {
        target.squeeze_dim(-1).one_hot(self.classes).to_kind(Kind::Float)
    }
}

/// Returns the mean over channels of the standard deviation over the rows of all `batches`, `(N, D)`
/// each. Near 0 for targets means collapse: the teacher's output is constant. Near 0 for one row.
///
/// # Errors
/// [`Error::Input`] if there are no batches, [`Error::Torch`] if their widths differ.
pub fn mean_std(batches: &[Tensor]) -> Result<f64> {
    let first = batches
        .first()
        .ok_or_else(|| Error::Input("no batches to take the standard deviation of".into()))?;
    let mut sums = Tensor::zeros([1 + 2 * first.size2()?.1], (Kind::Double, first.device()));
    for batch in batches {
        sums += data2vec_torch_ext::moments(batch)?;
    }
    Ok(mean_std_of_moments(&Vec::try_from(&sums)?))
}

/// Returns [`mean_std`] of the rows whose moments (count, sums, sums of squares) are given.
pub(crate) fn mean_std_of_moments(moments: &[f64]) -> f64 {
    let dim = (moments.len() - 1) / 2;
    let (count, sums, squares) = (moments[0], &moments[1..=dim], &moments[dim + 1..]);
    let of_channel = |(sum, square): (&f64, &f64)| {
        let var = (square - sum * sum / count).max(0.0) / (count - 1.0).max(1.0);
        (var + 1e-6).sqrt()
    };
    sums.iter().zip(squares).map(of_channel).sum::<f64>() / dim as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_match_hand_computed_values() {
        let p = Tensor::from_slice(&[0.0_f32, 0.0, 0.0, 0.0]).reshape([2, 2]);
        let t = Tensor::from_slice(&[1.0_f32, -3.0, 0.5, 2.0]).reshape([2, 2]);
        let value =
            |beta, scale| RegressionLoss { beta, scale, cls: None }.sum(&p, &t).double_value(&[]);
        assert!((value(0.0, None) - 14.25 / 2_f64.sqrt()).abs() < 1e-6); // 1 + 9 + .25 + 4
        // beta 2: .25·1, 3 − 1, .25·.25, |2| is not below 2: 2 − 1
        assert!((value(2.0, Some(1.0)) - (0.25 + 2.0 + 0.0625 + 1.0)).abs() < 1e-6);
    }

    #[test]
    fn cross_entropy_by_hand() {
        // Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8.
        let row = Tensor::from_slice(&[1.0_f32, 2.0, 5.0]).log();
        let logits = row.expand([2, 3], false);
        let ids = Tensor::from_slice(&[2_i64, 0]).unsqueeze(-1);
        let loss = CrossEntropy { classes: 3, scale: 1.0 };
        let expected = (8.0_f64 / 5.0).ln() + 8.0_f64.ln();
        assert!((loss.sum(&logits, &ids).double_value(&[]) - expected).abs() < 1e-6);
        let rows: Vec<f64> = (&loss.rows(&logits, &ids)).try_into().expect("numbers");
        assert!((rows[1] - 8.0_f64.ln()).abs() < 1e-6, "{rows:?}");
        let (probabilities, one_hot) = loss.comparable(&logits, &ids);
        assert!((probabilities.double_value(&[0, 1]) - 0.25).abs() < 1e-6);
        let one_hot: Vec<f64> = (&one_hot.flatten(0, 1)).try_into().expect("numbers");
        assert_eq!(one_hot, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn mean_std_matches_hand_computed_value() {
        let x = Tensor::from_slice(&[1.0_f32, 0.0, 3.0, 0.0]).reshape([2, 2]);
        let expected = ((2.0_f64 + 1e-6).sqrt() + 1e-3) / 2.0;
        let of = |batches: &[Tensor]| mean_std(batches).expect("rows");
        assert!((of(&[x.shallow_clone()]) - expected).abs() < 1e-9);
        let rows = [0, 1].map(|row| x.narrow(0, row, 1));
        assert!((of(&rows) - expected).abs() < 1e-9, "in parts");
        assert!((of(&rows[..1]) - 1e-3).abs() < 1e-9);
        assert!(mean_std(&[]).is_err());
    }
}
