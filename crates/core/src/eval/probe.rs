//! Probes of frozen features: k-nearest neighbours and a linear classifier.

use tch::{Kind, Tensor};

use crate::data::split::{Amount, stratified_split};
use crate::random::{Purpose, seed_for};
use crate::{Error, Result};

/// Largest number of similarities in memory at once.
const MAX_SIMILARITIES: i64 = 1 << 24;
/// A neighbour's vote weighs exp(cosine / `TEMPERATURE`) (Wu et al. 2018).
const TEMPERATURE: f64 = 0.07;
/// Weight decays to choose from, strongest first; each fit starts from the previous one.
const DECAYS: [f64; 6] = [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5];
/// Fraction of the training examples on which the weight decay is chosen.
const VALIDATION_FRACTION: f64 = 0.2;

/// Features of examples with their classes.
#[derive(Debug)]
pub struct LabelledFeatures {
    /// `(N, D)` f32.
    pub features: Tensor,
    /// `(N)` i64, from 0.
    pub labels: Tensor,
}

impl LabelledFeatures {
    /// Combines features `(N, D)` f32 with labels `(N)` i64.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if there are no examples, a shape or kind is wrong, a feature is
    /// not finite, or a label is negative.
    pub fn new(features: Tensor, labels: Tensor) -> Result<Self> {
        let (size, count) = (features.size(), labels.size());
        let valid_shapes =
            size.len() == 2 && count.len() == 1 && size[0] == count[0] && !size.contains(&0);
        let valid_kinds = (features.kind(), labels.kind()) == (Kind::Float, Kind::Int64);
        if !valid_shapes || !valid_kinds {
            let reason = format!(
                "a probe needs features (N, D) f32 and labels (N) i64, \
                 not {size:?} {:?} and {count:?} {:?}",
                features.kind(),
                labels.kind()
            );
            return Err(Error::Input(reason));
        }
        if features.isfinite().all().int64_value(&[]) == 0 {
            return Err(Error::Input("some features are not finite".into()));
        }
        if labels.min().int64_value(&[]) < 0 {
            return Err(Error::Input("a label is below 0".into()));
        }
        Ok(Self { features, labels })
    }

    /// Returns the number of examples.
    pub fn len(&self) -> i64 {
        self.labels.size()[0]
    }

    /// Returns false: [`LabelledFeatures::new`] rejects empty features.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the largest label plus one.
    fn classes(&self) -> i64 {
        self.labels.max().int64_value(&[]) + 1
    }

    /// Returns the examples at `indices`.
    fn select(&self, indices: &[usize]) -> Self {
        let indices: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
        let indices = Tensor::from_slice(&indices).to_device(self.labels.device());
        Self {
            features: self.features.index_select(0, &indices),
            labels: self.labels.index_select(0, &indices),
        }
    }
}

/// Checks that both sets have features of the same width.
fn check_widths(train: &LabelledFeatures, test: &LabelledFeatures) -> Result<()> {
    let (expected, found) = (train.features.size()[1], test.features.size()[1]);
    if expected != found {
        let reason = format!("training features have width {expected}, test features {found}");
        return Err(Error::Input(reason));
    }
    Ok(())
}

/// Computes the accuracy of a weighted `k`-nearest-neighbour classifier.
///
/// Similarity is the cosine after subtracting the mean of the training features. Neighbours are
/// training examples; without `test`, each training example is classified by the others.
///
/// # Errors
/// Returns [`Error::Input`] if `k` is 0 or above the number of neighbours, or widths differ.
pub fn knn_accuracy(
    train: &LabelledFeatures,
    test: Option<&LabelledFeatures>,
    k: usize,
) -> Result<f64> {
    check_widths(train, test.unwrap_or(train))?;
    let (k, neighbours) = (k as i64, train.len() - i64::from(test.is_none()));
    if !(1..=neighbours).contains(&k) {
        return Err(Error::Input(format!(
            "k = {k} is outside 1..={neighbours}, the number of neighbours"
        )));
    }
    tch::no_grad(|| {
        let mean = train.features.mean_dim(&[0_i64][..], true, Kind::Float); // (1, D)
        let direction = |x: &Tensor| {
            let x = x - &mean;
            let norm = x.square().sum_dim_intlist(&[1_i64][..], true, Kind::Float).sqrt();
            x / norm.clamp_min(1e-12)
        };
        let keys = direction(&train.features).tr(); // (D, N)
        let queries = test.unwrap_or(train);
        let classes = train.classes().max(queries.classes());
        let (rows, mut correct) = ((MAX_SIMILARITIES / train.len()).max(1), 0);
        for start in (0..queries.len()).step_by(rows as usize) {
            let rows = rows.min(queries.len() - start);
            let chunk = direction(&queries.features.narrow(0, start, rows)); // (n, D)
            let similarity = chunk.matmul(&keys); // (n, N)
            if test.is_none() {
                let own =
                    Tensor::arange_start(start, start + rows, (Kind::Int64, similarity.device()));
                let _ = similarity.shallow_clone().scatter_value_(1, &own.unsqueeze(1), -2.0);
            }
            let (similarity, nearest) = similarity.topk(k, 1, true, false); // (n, k)
            let labels = train.labels.index_select(0, &nearest.flatten(0, 1)).reshape_as(&nearest);
            let votes = Tensor::zeros([rows, classes], (Kind::Float, similarity.device()));
            let weights = (similarity / TEMPERATURE).exp();
            let votes = votes.scatter_add(1, &labels, &weights); // (n, classes)
            let labels = queries.labels.narrow(0, start, rows);
            correct += votes.argmax(1, false).eq_tensor(&labels).sum(Kind::Int64).int64_value(&[]);
        }
        Ok(correct as f64 / queries.len() as f64)
    })
}

/// Result of [`linear_probe`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearProbe {
    /// Fraction of test examples that are classified correctly.
    pub accuracy: f64,
    /// Weight decay chosen on a held-out part of the training examples.
    pub weight_decay: f64,
}

/// Computes the accuracy on `test` of a linear classifier trained on `train`.
///
/// Multinomial logistic regression on standardised features, trained to convergence. The weight
/// decay is chosen on a stratified fifth of `train`, sampled by `seed`.
///
/// # Errors
/// Returns [`Error::Input`] if widths differ.
pub fn linear_probe(
    train: &LabelledFeatures,
    test: &LabelledFeatures,
    seed: u64,
) -> Result<LinearProbe> {
    check_widths(train, test)?;
    let (train, test) = tch::no_grad(|| {
        let (var, mean) = train.features.var_mean_correction(&[0_i64][..], 0, true); // (1, D)
        let scale = (var + 1e-12).rsqrt();
        let standardize = |x: &LabelledFeatures| LabelledFeatures {
            features: (&x.features - &mean) * &scale,
            labels: x.labels.shallow_clone(),
        };
        (standardize(train), standardize(test))
    });
    linear_probe_as_is(&train, &test, seed)
}

/// As [`linear_probe`], without standardising: for features whose scales mean something, such as
/// TF-IDF, whose rare terms would weigh as much as frequent ones.
///
/// # Errors
/// Returns [`Error::Input`] if widths differ.
pub fn linear_probe_as_is(
    train: &LabelledFeatures,
    test: &LabelledFeatures,
    seed: u64,
) -> Result<LinearProbe> {
    check_widths(train, test)?;
    tch::no_grad(|| {
        let classes = train.classes().max(test.classes());

        let labels = Vec::<i64>::try_from(&train.labels)?;
        let keyed: Vec<(u64, u64)> = labels.iter().map(|&label| label as u64).zip(0..).collect();
        let seed = seed_for(seed, Purpose::HeldOut, &[]);
        let (fit, validation) = stratified_split(&keyed, Amount::Share(VALIDATION_FRACTION), seed);
        let mut best = (-1.0, DECAYS[0]);
        // With one example per class the validation part is empty; the strongest decay is the
        // safest.
        if !validation.is_empty() {
            let (fit, validation) = (train.select(&fit), train.select(&validation));
            let mut model = Regression::new(&fit, classes);
            for decay in DECAYS {
                model.minimise(&fit, decay);
                let accuracy = model.accuracy(&validation);
                if accuracy > best.0 {
                    best = (accuracy, decay);
                }
            }
        }
        let mut model = Regression::new(train, classes);
        for &decay in DECAYS.iter().take_while(|&&decay| decay >= best.1) {
            model.minimise(train, decay);
        }
        Ok(LinearProbe { accuracy: model.accuracy(test), weight_decay: best.1 })
    })
}

/// Multinomial logistic regression.
struct Regression {
    /// `(D + 1, classes)`; the last row is the bias, which does not decay.
    weight: Tensor,
}

/// History size of L-BFGS.
const HISTORY: usize = 10;
/// Largest number of L-BFGS steps.
const MAX_STEPS: usize = 200;
/// Relative decrease of the loss per step below which the optimisation has converged.
const MIN_DECREASE: f64 = 1e-5;
/// Largest number of halvings of a step in the line search.
const MAX_HALVINGS: usize = 20;

impl Regression {
    fn new(data: &LabelledFeatures, classes: i64) -> Self {
        let size = [data.features.size()[1] + 1, classes];
        Self { weight: Tensor::zeros(size, (Kind::Float, data.features.device())) }
    }

    /// Computes scores `(N, classes)`.
    fn scores(&self, features: &Tensor) -> Tensor {
        let dim = features.size()[1];
        features.matmul(&self.weight.narrow(0, 0, dim)) + self.weight.narrow(0, dim, 1)
    }

    fn accuracy(&self, data: &LabelledFeatures) -> f64 {
        let predicted = self.scores(&data.features).argmax(1, false);
        predicted.eq_tensor(&data.labels).to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
    }

    /// Returns the mean cross-entropy plus weight decay, and its gradient in the shape of the
    /// weights.
    fn loss(&self, data: &LabelledFeatures, decay: f64) -> (f64, Tensor) {
        let (count, dim) = (data.len(), data.features.size()[1]);
        let log_probs = self.scores(&data.features).log_softmax(1, Kind::Float); // (N, classes)
        let labels = data.labels.unsqueeze(1);
        let loss = -log_probs.gather(1, &labels, false).mean(Kind::Double).double_value(&[]);
        let minus_one = Tensor::from(-1.0_f32).to_device(log_probs.device()).expand_as(&labels);
        let residual = log_probs.exp().scatter_add(1, &labels, &minus_one); // (N, classes)
        let residual = residual / count as f64;
        let decayed = self.weight.narrow(0, 0, dim);
        let weight_grad = data.features.tr().matmul(&residual) + &decayed * decay; // (D, classes)
        let bias_grad = residual.sum_dim_intlist(&[0_i64][..], true, Kind::Float); // (1, classes)
        let penalty = decayed.square().sum(Kind::Double).double_value(&[]);
        (loss + 0.5 * decay * penalty, Tensor::cat(&[weight_grad, bias_grad], 0))
    }

    /// Minimises the loss by L-BFGS with a backtracking line search (Nocedal and Wright 2006, 7.2).
    fn minimise(&mut self, data: &LabelledFeatures, decay: f64) {
        let dot = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]);
        let mut history: Vec<(Tensor, Tensor, f64)> = Vec::new();
        let (mut loss, mut gradient) = self.loss(data, decay);
        for _ in 0..MAX_STEPS {
            let mut direction = -&gradient;
            let mut alphas = Vec::with_capacity(history.len());
            for (step_diff, grad_diff, curvature) in history.iter().rev() {
                let alpha = dot(step_diff, &direction) / curvature;
                direction -= grad_diff * alpha;
                alphas.push(alpha);
            }
            if let Some((_, grad_diff, curvature)) = history.last() {
                direction *= curvature / dot(grad_diff, grad_diff);
            }
            for ((step_diff, grad_diff, curvature), alpha) in
                history.iter().zip(alphas.iter().rev())
            {
                let beta = dot(grad_diff, &direction) / curvature;
                direction += step_diff * (alpha - beta);
            }
            let slope = dot(&gradient, &direction);
            let start = self.weight.shallow_clone();
            // Without a history the gradient has no natural step size.
            let mut step = if history.is_empty() { 1.0 / (1.0 + slope.abs().sqrt()) } else { 1.0 };
            let mut accepted = None;
            for _ in 0..MAX_HALVINGS {
                self.weight = &start + &direction * step;
                let (new_loss, new_gradient) = self.loss(data, decay);
                if new_loss <= loss + 1e-4 * step * slope {
                    accepted = Some((new_loss, new_gradient));
                    break;
                }
                step *= 0.5;
            }
            let Some((new_loss, new_gradient)) = accepted else {
                self.weight = start;
                return;
            };
            let (step_diff, grad_diff) = (&self.weight - start, &new_gradient - &gradient);
            let curvature = dot(&step_diff, &grad_diff);
            if curvature > 0.0 {
                history.push((step_diff, grad_diff, curvature));
                if history.len() > HISTORY {
                    drop(history.remove(0));
                }
            }
            let decrease = loss - new_loss;
            (loss, gradient) = (new_loss, new_gradient);
            if decrease < MIN_DECREASE * loss {
                return;
            }
        }
    }
}
