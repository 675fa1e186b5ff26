//! What frozen features know of classes: nearest neighbours, and a linear map.

use tch::{Kind, Tensor};

use crate::random::{Purpose, seed_for};
use crate::split::{Amount, stratified};
use crate::{Error, Result};

/// Similarities that are in memory at once.
const CELLS: i64 = 1 << 24;
/// How much a neighbour counts: exp(cosine / this) (Wu et al. 2018).
const TEMPERATURE: f64 = 0.07;
/// Strengths of weight decay that are tried, from strong to weak: each starts from the one before.
const DECAYS: [f64; 6] = [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5];
/// Share of the training examples by which the strength is chosen.
const CHOOSING: f64 = 0.2;

/// Features of examples, and their classes.
#[derive(Debug)]
pub struct LabelledFeatures {
    /// `(N, D)` f32.
    pub features: Tensor,
    /// `(N)` i64, from 0 on.
    pub labels: Tensor,
}

impl LabelledFeatures {
    /// Features `(N, D)` with a label `(N)` i64 each.
    ///
    /// # Errors
    /// [`Error::Input`] if there are none, if shapes or kinds do not fit, or a feature is not finite.
    pub fn new(features: Tensor, labels: Tensor) -> Result<Self> {
        let (size, count) = (features.size(), labels.size());
        let fits = size.len() == 2 && count.len() == 1 && size[0] == count[0] && !size.contains(&0);
        let kinds = (features.kind(), labels.kind()) == (Kind::Float, Kind::Int64);
        if !fits || !kinds {
            let reason = format!(
                "a probe takes features (N, D) f32 and labels (N) i64, not {size:?} {:?} and {count:?} {:?}",
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

    /// How many examples.
    pub fn len(&self) -> i64 {
        self.labels.size()[0]
    }

    /// Never: see [`LabelledFeatures::new`].
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One more than the largest label.
    fn classes(&self) -> i64 {
        self.labels.max().int64_value(&[]) + 1
    }

    /// The examples in these places.
    fn part(&self, places: &[usize]) -> Self {
        let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
        let places = Tensor::from_slice(&places).to_device(self.labels.device());
        Self {
            features: self.features.index_select(0, &places),
            labels: self.labels.index_select(0, &places),
        }
    }
}

fn check(train: &LabelledFeatures, test: &LabelledFeatures) -> Result<()> {
    let (ours, theirs) = (train.features.size()[1], test.features.size()[1]);
    if ours != theirs {
        let reason = format!("training features have width {ours}, the others {theirs}");
        return Err(Error::Input(reason));
    }
    Ok(())
}

/// The share of examples whose `k` nearest neighbours vote for their class.
///
/// Near is what has a similar direction, after the mean of the training examples was subtracted; the
/// nearer, the more a vote counts. The neighbours are training examples; without `test`, each training
/// example is judged by the others.
///
/// # Errors
/// [`Error::Input`] if there are not `k` neighbours, `k` is 0, or widths differ.
pub fn knn_accuracy(
    train: &LabelledFeatures,
    test: Option<&LabelledFeatures>,
    k: usize,
) -> Result<f64> {
    check(train, test.unwrap_or(train))?;
    let (k, neighbours) = (k as i64, train.len() - i64::from(test.is_none()));
    if !(1..=neighbours).contains(&k) {
        return Err(Error::Input(format!(
            "k = {k} is outside 1..={neighbours}: neighbours to vote"
        )));
    }
    tch::no_grad(|| {
        let mean = train.features.mean_dim(&[0_i64][..], true, Kind::Float); // (1, D)
        let direction = |x: &Tensor| {
            let x = x - &mean;
            let length = x.square().sum_dim_intlist(&[1_i64][..], true, Kind::Float).sqrt();
            x / length.clamp_min(1e-12)
        };
        let keys = direction(&train.features).tr(); // (D, N)
        let asked = test.unwrap_or(train);
        let classes = train.classes().max(asked.classes());
        let (rows, mut right) = ((CELLS / train.len()).max(1), 0);
        for start in (0..asked.len()).step_by(rows as usize) {
            let rows = rows.min(asked.len() - start);
            let similar = direction(&asked.features.narrow(0, start, rows)).matmul(&keys); // (n, N)
            if test.is_none() {
                let itself =
                    Tensor::arange_start(start, start + rows, (Kind::Int64, similar.device()));
                let _ = similar.shallow_clone().scatter_value_(1, &itself.unsqueeze(1), -2.0);
            }
            let (similar, nearest) = similar.topk(k, 1, true, false); // (n, k)
            let voted = train.labels.index_select(0, &nearest.flatten(0, 1)).reshape_as(&nearest);
            let votes = Tensor::zeros([rows, classes], (Kind::Float, similar.device()));
            let votes = votes.scatter_add(1, &voted, &(similar / TEMPERATURE).exp()); // (n, classes)
            let labels = asked.labels.narrow(0, start, rows);
            right += votes.argmax(1, false).eq_tensor(&labels).sum(Kind::Int64).int64_value(&[]);
        }
        Ok(right as f64 / asked.len() as f64)
    })
}

/// What [`linear_probe`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearProbe {
    /// The share of test examples whose class has the highest score.
    pub accuracy: f64,
    /// The weight decay that was best on a part of the training examples.
    pub weight_decay: f64,
}

/// The share of `test` that a linear map gets right: multinomial logistic regression on features of mean
/// 0 and variance 1, trained on `train` to its minimum. How strong its weight decay is, is chosen on a
/// fifth of `train`, of which `seed` says which.
///
/// # Errors
/// [`Error::Input`] if widths differ.
pub fn linear_probe(
    train: &LabelledFeatures,
    test: &LabelledFeatures,
    seed: u64,
) -> Result<LinearProbe> {
    check(train, test)?;
    tch::no_grad(|| {
        let (var, mean) = train.features.var_mean_correction(&[0_i64][..], 0, true); // (1, D)
        let scale = (var + 1e-12).rsqrt();
        let standard = |x: &LabelledFeatures| LabelledFeatures {
            features: (&x.features - &mean) * &scale,
            labels: x.labels.shallow_clone(),
        };
        let (train, test) = (standard(train), standard(test));
        let classes = train.classes().max(test.classes());

        let labels = Vec::<i64>::try_from(&train.labels)?;
        let ranked: Vec<(u64, u64)> = labels.iter().map(|&label| label as u64).zip(0..).collect();
        let seed = seed_for(seed, Purpose::HeldOut, &[]);
        let (fit, choose) = stratified(&ranked, Amount::Share(CHOOSING), seed);
        let mut best = (-1.0, DECAYS[0]);
        // With one example of each class, none is left to choose by: the strongest is the safest.
        if !choose.is_empty() {
            let (fit, choose) = (train.part(&fit), train.part(&choose));
            let mut map = Regression::new(&fit, classes);
            for decay in DECAYS {
                map.minimise(&fit, decay);
                let accuracy = map.accuracy(&choose);
                if accuracy > best.0 {
                    best = (accuracy, decay);
                }
            }
        }
        let mut map = Regression::new(&train, classes);
        for &decay in DECAYS.iter().take_while(|&&decay| decay >= best.1) {
            map.minimise(&train, decay);
        }
        Ok(LinearProbe { accuracy: map.accuracy(&test), weight_decay: best.1 })
    })
}

/// Multinomial logistic regression.
struct Regression {
    /// `(D + 1, classes)`: the last row is added to all scores, and does not decay.
    weight: Tensor,
}

/// Steps whose curvature L-BFGS remembers.
const HISTORY: usize = 10;
/// Most steps of L-BFGS.
const STEPS: usize = 200;
/// What a step must gain, relative to the loss, to be worth the next.
const GAIN: f64 = 1e-5;
/// Times that a step is halved before the minimum is taken to be reached.
const HALVINGS: usize = 20;

impl Regression {
    fn new(data: &LabelledFeatures, classes: i64) -> Self {
        let size = [data.features.size()[1] + 1, classes];
        Self { weight: Tensor::zeros(size, (Kind::Float, data.features.device())) }
    }

    /// `(N, classes)`
    fn scores(&self, features: &Tensor) -> Tensor {
        let dim = features.size()[1];
        features.matmul(&self.weight.narrow(0, 0, dim)) + self.weight.narrow(0, dim, 1)
    }

    fn accuracy(&self, data: &LabelledFeatures) -> f64 {
        let guess = self.scores(&data.features).argmax(1, false);
        guess.eq_tensor(&data.labels).to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
    }

    /// The mean cross-entropy with the decay's share, and its gradient, of the shape of the weights.
    fn loss(&self, data: &LabelledFeatures, decay: f64) -> (f64, Tensor) {
        let (count, dim) = (data.len(), data.features.size()[1]);
        let logs = self.scores(&data.features).log_softmax(1, Kind::Float); // (N, classes)
        let labels = data.labels.unsqueeze(1);
        let loss = -logs.gather(1, &labels, false).mean(Kind::Double).double_value(&[]);
        let minus_one = Tensor::from(-1.0_f32).to_device(logs.device()).expand_as(&labels);
        let wrong = logs.exp().scatter_add(1, &labels, &minus_one) / count as f64; // (N, classes)
        let decayed = self.weight.narrow(0, 0, dim);
        let across = data.features.tr().matmul(&wrong) + &decayed * decay; // (D, classes)
        let shift = wrong.sum_dim_intlist(&[0_i64][..], true, Kind::Float); // (1, classes)
        let size = decayed.square().sum(Kind::Double).double_value(&[]);
        (loss + 0.5 * decay * size, Tensor::cat(&[across, shift], 0))
    }

    /// Goes from where it is to the minimum, by L-BFGS with halved steps (Nocedal and Wright, 7.2).
    fn minimise(&mut self, data: &LabelledFeatures, decay: f64) {
        let dot = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]);
        let mut history: Vec<(Tensor, Tensor, f64)> = Vec::new();
        let (mut loss, mut gradient) = self.loss(data, decay);
        for _ in 0..STEPS {
            let mut direction = -&gradient;
            let mut along = Vec::with_capacity(history.len());
            for (moved, bent, curvature) in history.iter().rev() {
                let share = dot(moved, &direction) / curvature;
                direction -= bent * share;
                along.push(share);
            }
            if let Some((_, bent, curvature)) = history.last() {
                direction *= curvature / dot(bent, bent);
            }
            for ((moved, bent, curvature), share) in history.iter().zip(along.iter().rev()) {
                let back = dot(bent, &direction) / curvature;
                direction += moved * (share - back);
            }
            let slope = dot(&gradient, &direction);
            let start = self.weight.shallow_clone();
            // Without a history the gradient's length says nothing of how far to go.
            let mut step = if history.is_empty() { 1.0 / (1.0 + slope.abs().sqrt()) } else { 1.0 };
            let mut lower = None;
            for _ in 0..HALVINGS {
                self.weight = &start + &direction * step;
                let (new, at) = self.loss(data, decay);
                if new <= loss + 1e-4 * step * slope {
                    lower = Some((new, at));
                    break;
                }
                step *= 0.5;
            }
            let Some((new, at)) = lower else {
                self.weight = start;
                return;
            };
            let (moved, bent) = (&self.weight - start, &at - &gradient);
            let curvature = dot(&moved, &bent);
            if curvature > 0.0 {
                history.push((moved, bent, curvature));
                if history.len() > HISTORY {
                    drop(history.remove(0));
                }
            }
            let gained = loss - new;
            (loss, gradient) = (new, at);
            if gained < GAIN * loss {
                return;
            }
        }
    }
}
