//! The regression loss and the figures that tell a healthy run from a collapsed one.

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use crate::{Error, Result};

/// Smooth L1 or squared error between prediction and target, summed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegressionLoss {
    /// Where smooth L1 turns from square to line (data2vec 1.0 eq. 4); 0: squared error.
    pub beta: f64,
    /// Factor of the sum over channels; absent: 1/√D.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Weight of the prefix token's own loss: it predicts the mean target of all tokens (2.0's CLS
    /// loss, section 3.2). A mean over rows, beside the mean over hidden tokens; absent: none.
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

    /// Scalar f32: summed over channels and hidden tokens. Divide by the number of hidden tokens
    /// once, after the last micro-batch: a mean of means is not the large batch's gradient.
    pub fn sum(&self, prediction: &Tensor, target: &Tensor) -> Tensor {
        self.reduced(prediction, target, Reduction::Sum)
    }

    /// `(N)` f32: the same for each row of `(N, D)`, summed over channels alone.
    pub fn rows(&self, prediction: &Tensor, target: &Tensor) -> Tensor {
        let each = self.reduced(prediction, target, Reduction::None); // (N, D)
        each.sum_dim_intlist(&[-1_i64][..], false, Kind::Float)
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

/// Mean over channels of the standard deviation over the rows of all `batches`, `(N, D)` each.
///
/// Of targets near 0 means that the teacher says the same everywhere: collapse. Nearly 0 for one row.
///
/// # Errors
/// [`Error::Input`] of no batches, [`Error::Torch`] if they do not fit each other.
pub fn mean_std(batches: &[Tensor]) -> Result<f64> {
    let first = batches.first().ok_or_else(|| Error::Input("the spread of nothing".into()))?;
    let mut sums = Tensor::zeros([1 + 2 * first.size2()?.1], (Kind::Double, first.device()));
    for batch in batches {
        sums += data2vec_torch_ext::moments(batch)?;
    }
    Ok(mean_std_of_moments(&Vec::try_from(&sums)?))
}

/// [`mean_std`] of the rows that made `moments`.
pub(crate) fn mean_std_of_moments(moments: &[f64]) -> f64 {
    let dim = (moments.len() - 1) / 2;
    let (count, sums, squares) = (moments[0], &moments[1..=dim], &moments[dim + 1..]);
    let of_channel = |(sum, square): (&f64, &f64)| {
        let var = (square - sum * sum / count).max(0.0) / (count - 1.0).max(1.0);
        (var + 1e-6).sqrt()
    };
    sums.iter().zip(squares).map(of_channel).sum::<f64>() / dim as f64
}

/// Share of the targets' variance that predictions explain, over any number of batches.
///
/// 1 − Σ(prediction − target)² / Σ(target − mean target)², the mean taken for each channel over all
/// hidden tokens added. 0 is what the best constant reaches. Unlike the loss it cannot be improved
/// by shrinking the targets.
#[derive(Debug, Default)]
pub struct Explained {
    count: i64,
    /// Sums over hidden tokens of target and its square, and squared error: `(D)` f64 each.
    sums: Option<[Tensor; 3]>,
}

impl Explained {
    /// Adds hidden tokens' predictions and targets, `(N, D)` each.
    pub fn add(&mut self, prediction: &Tensor, target: &Tensor) {
        let (p, t) =
            (prediction.detach().to_kind(Kind::Double), target.detach().to_kind(Kind::Double));
        let total = |x: Tensor| x.sum_dim_intlist(&[0_i64][..], false, Kind::Double);
        let new = [total(t.shallow_clone()), total(t.square()), total((p - &t).square())];
        self.count += target.size()[0];
        self.sums = Some(match self.sums.take() {
            Some([a, b, c]) => {
                let [x, y, z] = new;
                [a + x, b + y, c + z]
            }
            None => new,
        });
    }

    /// The share; `None` before anything was added or while all targets are equal.
    pub fn share(&self) -> Option<f64> {
        let [sum, square, error] = self.sums.as_ref()?;
        let total = (square - sum.square() / self.count as f64).sum(Kind::Double).double_value(&[]);
        let error = error.sum(Kind::Double).double_value(&[]);
        (total > 0.0).then(|| 1.0 - error / total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn losses_by_hand() {
        let p = Tensor::from_slice(&[0.0_f32, 0.0, 0.0, 0.0]).reshape([2, 2]);
        let t = Tensor::from_slice(&[1.0_f32, -3.0, 0.5, 2.0]).reshape([2, 2]);
        let value =
            |beta, scale| RegressionLoss { beta, scale, cls: None }.sum(&p, &t).double_value(&[]);
        assert!((value(0.0, None) - 14.25 / 2_f64.sqrt()).abs() < 1e-6); // 1 + 9 + .25 + 4
        // beta 2: .25·1, 3 − 1, .25·.25, |2| is not below 2: 2 − 1
        assert!((value(2.0, Some(1.0)) - (0.25 + 2.0 + 0.0625 + 1.0)).abs() < 1e-6);
    }

    #[test]
    fn spread_by_hand() {
        let x = Tensor::from_slice(&[1.0_f32, 0.0, 3.0, 0.0]).reshape([2, 2]);
        let expected = ((2.0_f64 + 1e-6).sqrt() + 1e-3) / 2.0;
        let of = |batches: &[Tensor]| mean_std(batches).expect("rows");
        assert!((of(&[x.shallow_clone()]) - expected).abs() < 1e-9);
        let rows = [0, 1].map(|row| x.narrow(0, row, 1));
        assert!((of(&rows) - expected).abs() < 1e-9, "in parts");
        assert!((of(&rows[..1]) - 1e-3).abs() < 1e-9);
        assert!(mean_std(&[]).is_err());
    }

    #[test]
    fn explained_is_one_for_perfect_zero_for_the_mean_and_adds_up() {
        let t = Tensor::randn([40, 3], (Kind::Float, Device::Cpu));
        let of = |p: &Tensor| {
            let mut explained = Explained::default();
            for part in 0..4 {
                explained.add(&p.narrow(0, part * 10, 10), &t.narrow(0, part * 10, 10));
            }
            explained.share().expect("something was added")
        };
        assert!((of(&t) - 1.0).abs() < 1e-9);
        let mean = t.mean_dim(&[0_i64][..], true, Kind::Float).expand_as(&t);
        assert!(of(&mean).abs() < 1e-5);
        assert!(of(&(&t * 2.0 + 1.0)) < 0.0);
        assert_eq!(Explained::default().share(), None);
    }
}
