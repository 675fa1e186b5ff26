//! What every comparison with a reference implementation does. Gates: `goldens/README.md`.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use data2vec_core::nn::{Init, LayerNorm};
use data2vec_core::optim::OptimizerCompat;
use data2vec_core::{
    AdamW, AdamWConfig, Data2Vec, Decoder, DecoderConfig, FeatureEncoder, Gradients, Mask,
    Objective, Tokens,
};
use ndarray::Array2;
use tch::{Device, Kind, Tensor, nn};

use crate::reference::{Tensors, golden};
use crate::tiny::difference;

/// Gate of values.
pub const VALUES: f64 = 2e-5;
const WEIGHTS: f64 = 5e-5;

/// How a reference names our variables.
pub trait Names {
    /// Our variable `name`, of the given size, among tensors with the reference's names behind
    /// `prefix`.
    fn tensor(&self, tensors: &Tensors, prefix: &str, name: &str, size: &[i64]) -> Option<Tensor>;

    /// Whether the teacher takes what variable `name` makes from the student, and the reference has
    /// no copy of it.
    fn students_own(&self, _name: &str) -> bool {
        false
    }

    /// Which of the reference's files holds the tensors behind `prefix`.
    fn file<'a>(&self, prefix: &'a str) -> &'a str {
        match prefix {
            "student" | "teacher" => "weights",
            "grad" => "grads",
            "after_torch_adamw" => "torch",
            _ => prefix.split('_').next().unwrap_or(prefix),
        }
    }

    /// Largest difference between our variable `name` and the reference's.
    fn difference(&self, _name: &str, ours: &Tensor, theirs: &Tensor) -> f64 {
        difference(ours, theirs)
    }
}

/// Numbers of a reference.
pub struct Goldens<N> {
    name: &'static str,
    /// Input, mask, intermediate values, targets, predictions and losses.
    pub forward: Tensors,
    names: N,
    /// Hidden tokens that its loss is a sum over; 1: it is a mean.
    summed: f64,
    /// Intermediate values that were compared.
    seen: RefCell<BTreeSet<String>>,
}

impl<N: Names> Goldens<N> {
    /// Those in `goldens/NAME.….safetensors`, whose losses are sums over `summed` hidden tokens.
    pub fn new(name: &'static str, names: N, summed: f64) -> Self {
        let forward = golden(&format!("{name}.forward"));
        Self { name, forward, names, summed, seen: RefCell::default() }
    }

    fn file(&self, prefix: &str) -> Tensors {
        golden(&format!("{}.{}", self.name, self.names.file(prefix)))
    }

    /// The reference's `mask`: `(rows, …)` of 0 and 1, flattened to a row of tokens each.
    ///
    /// # Panics
    /// If it is no mask.
    pub fn mask(&self) -> Mask {
        let hidden = &self.forward["mask"];
        let rows = hidden.size()[0] as usize;
        let flat = Vec::<i64>::try_from(hidden.to_kind(Kind::Int64).flatten(0, -1));
        let flat: Vec<bool> = flat.expect("integers").iter().map(|&h| h != 0).collect();
        let hidden = Array2::from_shape_vec((rows, flat.len() / rows), flat).expect("equal rows");
        Mask::new(hidden).expect("something hidden")
    }

    /// Gives `vars` the reference's values behind `prefix`.
    ///
    /// # Panics
    /// If one is missing.
    pub fn set(&self, vars: HashMap<String, Tensor>, prefix: &str) {
        let tensors = self.file(prefix);
        for (name, mut var) in vars {
            if let Some(value) = self.expected(&tensors, prefix, &name, &var) {
                tch::no_grad(|| var.copy_(&value));
            }
        }
    }

    /// `None` for a teacher's variable of which the reference has no copy.
    fn expected(
        &self,
        tensors: &Tensors,
        prefix: &str,
        name: &str,
        var: &Tensor,
    ) -> Option<Tensor> {
        if prefix.ends_with("teacher") && self.names.students_own(name) {
            return None;
        }
        let found = self.names.tensor(tensors, prefix, name, &var.size());
        Some(found.unwrap_or_else(|| panic!("{}: no {prefix} of {name}", self.name)))
    }

    /// The reference's intermediate value `name`, which counts as compared.
    ///
    /// # Panics
    /// If there is none.
    pub fn mid(&self, name: &str) -> Tensor {
        let name = format!("mid.{name}");
        let value = self.forward.get(&name).unwrap_or_else(|| panic!("no {name}")).shallow_clone();
        self.seen.borrow_mut().insert(name);
        value
    }

    /// `ours` is the reference's intermediate value `name`.
    ///
    /// # Panics
    /// Unless it is.
    #[track_caller]
    pub fn assert_mid(&self, name: &str, ours: &Tensor) {
        self.assert_value(name, ours, &self.mid(name));
    }

    /// `ours` is `theirs`, within the gate of values.
    ///
    /// # Panics
    /// Unless it is.
    #[track_caller]
    pub fn assert_value(&self, what: &str, ours: &Tensor, theirs: &Tensor) {
        let off = difference(ours, theirs);
        assert!(off < VALUES, "{}: {what} is off by {off}", self.name);
    }

    /// 2.0's decoder, convolution by convolution, of features `tokens`; the reference calls it `name`.
    ///
    /// # Panics
    /// If something is not the reference's.
    pub fn assert_decoder<F: FeatureEncoder>(
        &self,
        name: &str,
        model: &Data2Vec<F>,
        tokens: &Tokens,
        mask: &Mask,
    ) {
        let config = model.config();
        let vars = nn::VarStore::new(Device::Cpu);
        let path = vars.root() / "decoder";
        let decoder = Decoder::new(&path, &config.decoder, config.transformer.dim, Init::Torch);
        copy(&vars, &model.vars().variables(), "");
        let (layers, residual): (Vec<Tensor>, bool) = match (&decoder, &config.decoder) {
            (Decoder::Conv1d(conv), DecoderConfig::Conv1d { residual, .. }) => {
                (conv.layers(tokens).collect(), *residual)
            }
            (Decoder::Conv2d(conv), DecoderConfig::Conv2d { residual, .. }) => {
                (conv.layers(tokens).collect(), *residual)
            }
            _ => panic!("{name} has no convolutions"),
        };
        let mut input = &tokens.x;
        for (i, layer) in layers.iter().enumerate() {
            let theirs = self.mid(&format!("{name}.blocks.{i}")); // (B, dim, T) or (B, dim, h, w)
            let ours = if residual { layer - input } else { layer.shallow_clone() };
            self.assert_value("convolution", &ours, &theirs.flatten(2, -1).transpose(1, 2));
            input = layer;
        }
        let visible = Mask::new(mask.hidden().mapv(|hidden| !hidden)).expect("something visible");
        for mask in [mask, &visible] {
            let theirs = mask.gather(&self.mid(name), 1);
            self.assert_value(name, &decoder.forward(tokens, mask), &theirs);
        }
    }

    /// No intermediate value of the reference was left out.
    ///
    /// # Panics
    /// If some were.
    pub fn assert_all_mids_seen(&self) {
        let seen = self.seen.borrow();
        let left: Vec<_> = self.forward.keys().filter(|k| k.starts_with("mid.")).collect();
        let left: Vec<_> = left.into_iter().filter(|&k| !seen.contains(k)).collect();
        assert!(left.is_empty() && !seen.is_empty(), "{} has more: {left:?}", self.name);
    }

    /// Targets, predictions and loss of the first step.
    ///
    /// # Panics
    /// If one is not the reference's.
    pub fn assert_objective(&self, objective: &Objective) {
        self.assert_value("target", &objective.target, &self.forward["target.regression"]);
        self.assert_value("prediction", &objective.prediction, &self.forward["pred.regression"]);
        let loss = objective.loss.double_value(&[]) / objective.num_hidden as f64;
        let expected = self.forward["loss.sum"].double_value(&[]) / self.summed;
        assert!((loss / expected - 1.0).abs() < 1e-5, "{}: {loss} is not {expected}", self.name);
    }

    /// The gradients of `vars`, of a loss summed over `hidden` tokens.
    ///
    /// # Panics
    /// If one is not the reference's.
    pub fn assert_gradients(&self, vars: HashMap<String, Tensor>, hidden: i64) {
        let grads = self.file("grad");
        for (name, var) in vars {
            let Some(expected) = self.expected(&grads, "grad", &name, &var) else { continue };
            let gate = 1e-5 + 1e-4 * expected.abs().max().double_value(&[]);
            let off = difference(&(var.grad() / hidden as f64), &expected);
            assert!(off < gate, "{}: gradient of {name} is off by {off}", self.name);
        }
    }

    /// `vars` are the reference's values behind `prefix`.
    ///
    /// # Panics
    /// Unless they are.
    #[track_caller]
    pub fn assert_weights(&self, vars: HashMap<String, Tensor>, prefix: &str) {
        let tensors = self.file(prefix);
        for (name, var) in vars {
            let Some(expected) = self.expected(&tensors, prefix, &name, &var) else { continue };
            let off = self.names.difference(&name, &var, &expected);
            assert!(off < WEIGHTS, "{}: {prefix} {name} is off by {off}", self.name);
        }
    }

    /// Five steps of `state` by `step`, which takes the step's number from 0 and gives loss and
    /// gradient norm, both for each hidden token. The reference's teacher has moved `moves` times.
    ///
    /// # Panics
    /// If they are not the reference's.
    pub fn assert_five_steps<S, F: FeatureEncoder>(
        &self,
        mut state: S,
        model: impl Fn(&S) -> &Data2Vec<F>,
        mut step: impl FnMut(&mut S, usize) -> (f64, f64),
        moves: usize,
    ) {
        for i in 0..5 {
            let (loss, norm) = step(&mut state, i);
            let theirs = |name: &str| self.forward[name].double_value(&[i as i64]);
            for (what, ours, theirs) in [
                ("loss", loss, theirs("traj.loss") / self.summed),
                ("gradient norm", norm, theirs("traj.grad_norm")),
            ] {
                let close = (ours / theirs - 1.0).abs() < 1e-4;
                assert!(close, "{} step {i}: {what} {ours} is not {theirs}", self.name);
            }
            let model = model(&state);
            if i == 0 {
                self.assert_weights(model.vars().variables(), "after_student");
                self.assert_weights(model.teacher().variables(), "after_teacher");
            }
            if i + 1 == moves {
                self.assert_weights(model.teacher().variables(), "final_teacher");
            }
        }
        self.assert_weights(model(&state).vars().variables(), "final_student");
    }
}

/// Gives `vars` the values of `theirs` whose names are `prefix` and theirs.
fn copy(vars: &nn::VarStore, theirs: &HashMap<String, Tensor>, prefix: &str) {
    for (name, mut var) in vars.variables() {
        tch::no_grad(|| var.copy_(&theirs[&format!("{prefix}{name}")]));
    }
}

/// What the layer norm whose variables are below `name` makes of `x`.
pub fn normed(vars: &HashMap<String, Tensor>, name: &str, x: &Tensor, eps: f64) -> Tensor {
    let own = nn::VarStore::new(Device::Cpu);
    let dim = x.size().last().copied().unwrap_or(1);
    let norm = LayerNorm::new(&own.root(), dim, eps);
    copy(&own, vars, &format!("{name}."));
    norm.forward(x)
}

/// Backward, optimizer, teacher. Returns loss and gradient norm, both for each hidden token.
///
/// # Panics
/// If LibTorch refuses.
pub fn step<F: FeatureEncoder>(
    model: &mut Data2Vec<F>,
    optimizer: &mut AdamW,
    objective: &Objective,
    step: usize,
    clip: f64,
) -> (f64, f64) {
    let (count, step) = (objective.num_hidden as f64, step as u64 + 1);
    let gradients = optimizer
        .gradients((1, step), &[(0, objective)], |objective, _, _| {
            Ok(objective.loss.shallow_clone())
        })
        .expect("a loss");
    let norm = gradients.norm.double_value(&[]);
    let divisor = Gradients::divisor(norm, count, Some(clip));
    optimizer.step(step, 1e-3, &gradients, divisor).expect("a step");
    model.update_teacher(step).expect("a step");
    (objective.loss.double_value(&[]) / count, norm / count)
}

/// fairseq's Adam.
pub fn fairseq(config: AdamWConfig) -> AdamWConfig {
    let compat = vec![OptimizerCompat::FairseqEpsilon, OptimizerCompat::DecayEverything];
    AdamWConfig { compat, ..config }
}

/// PyTorch's AdamW, with decay of everything.
pub fn pytorch(config: AdamWConfig) -> AdamWConfig {
    AdamWConfig { compat: vec![OptimizerCompat::DecayEverything], ..config }
}
