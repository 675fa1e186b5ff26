//! Comparison with a reference implementation. Tolerances: see `goldens/README.md`.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use data2vec_core::model::nn::{Init, LayerNorm};
use data2vec_core::train::optim::OptimizerCompat;
use data2vec_core::{
    AdamW, AdamWConfig, Data2Vec, Decode, Decoder, DecoderConfig, FeatureEncoder, Gradients, Mask,
    Objective, Tokens,
};
use ndarray::Array2;
use tch::{Device, Kind, Tensor, nn};

use crate::reference::{Tensors, golden};
use crate::tiny::max_abs_diff;

/// Largest accepted difference of activations, targets and predictions.
pub const VALUE_TOLERANCE: f64 = 2e-5;
/// Largest accepted difference of weights after training steps.
const WEIGHT_TOLERANCE: f64 = 5e-5;

/// Maps our variable names to those of a reference.
pub trait Names {
    /// Returns the value of our variable `name`, of shape `size`, from tensors under the reference's
    /// names, which follow `prefix` and a dot.
    fn tensor(&self, tensors: &Tensors, prefix: &str, name: &str, size: &[i64]) -> Option<Tensor>;

    /// Returns true if the teacher uses the student's variable `name`; the reference's teacher has no
    /// copy of it.
    fn is_shared_with_student(&self, _name: &str) -> bool {
        false
    }

    /// Returns the golden file with the tensors of `prefix`.
    fn file<'a>(&self, prefix: &'a str) -> &'a str {
        match prefix {
            "student" | "teacher" => "weights",
            "grad" => "grads",
            "after_torch_adamw" => "torch",
            _ => prefix.split('_').next().unwrap_or(prefix),
        }
    }

    /// Returns the largest absolute difference between our variable `name` and the reference's.
    fn max_abs_diff(&self, _name: &str, ours: &Tensor, theirs: &Tensor) -> f64 {
        max_abs_diff(ours, theirs)
    }
}

/// Values that a reference computed, of one model.
pub struct Goldens<N> {
    name: &'static str,
    /// Inputs, mask, intermediate values, targets, predictions and losses.
    pub forward: Tensors,
    names: N,
    /// Number of masked tokens that the reference's loss sums over; 1 if its loss is a mean.
    loss_tokens: f64,
    /// Names of the intermediate values compared so far.
    compared: RefCell<BTreeSet<String>>,
}

impl<N: Names> Goldens<N> {
    /// Reads `goldens/NAME.*.safetensors`, whose losses are sums over `loss_tokens` masked tokens.
    pub fn new(name: &'static str, names: N, loss_tokens: f64) -> Self {
        let forward = golden(&format!("{name}.forward"));
        Self { name, forward, names, loss_tokens, compared: RefCell::default() }
    }

    fn file(&self, prefix: &str) -> Tensors {
        golden(&format!("{}.{}", self.name, self.names.file(prefix)))
    }

    /// Returns the reference's mask: 0 or 1 in shape `(rows, …)`, flattened to `(rows, T)`.
    ///
    /// # Panics
    /// Panics if it is not a mask.
    pub fn mask(&self) -> Mask {
        let mask = &self.forward["mask"];
        let rows = mask.size()[0] as usize;
        let flat = Vec::<i64>::try_from(mask.to_kind(Kind::Int64).flatten(0, -1));
        let flat: Vec<bool> = flat.expect("integers").iter().map(|&m| m != 0).collect();
        let masked = Array2::from_shape_vec((rows, flat.len() / rows), flat).expect("equal rows");
        Mask::new(masked).expect("masked tokens")
    }

    /// Copies the reference's values of `prefix` to `vars`.
    ///
    /// # Panics
    /// Panics if one is missing.
    pub fn load_into(&self, vars: HashMap<String, Tensor>, prefix: &str) {
        let tensors = self.file(prefix);
        for (name, mut var) in vars {
            if let Some(value) = self.expected(&tensors, prefix, &name, &var) {
                tch::no_grad(|| var.copy_(&value));
            }
        }
    }

    /// Returns the reference's value; `None` for a teacher's variable that it shares with the student.
    fn expected(
        &self,
        tensors: &Tensors,
        prefix: &str,
        name: &str,
        var: &Tensor,
    ) -> Option<Tensor> {
        if prefix.ends_with("teacher") && self.names.is_shared_with_student(name) {
            return None;
        }
        let found = self.names.tensor(tensors, prefix, name, &var.size());
        Some(found.unwrap_or_else(|| panic!("{}: {prefix} has no {name}", self.name)))
    }

    /// Returns the reference's intermediate value `name` and marks it as compared.
    ///
    /// # Panics
    /// Panics if it does not exist.
    pub fn intermediate(&self, name: &str) -> Tensor {
        let name = format!("mid.{name}");
        let value = self.forward.get(&name).unwrap_or_else(|| panic!("no {name}")).shallow_clone();
        self.compared.borrow_mut().insert(name);
        value
    }

    /// Asserts that `ours` is close to the reference's intermediate value `name`.
    ///
    /// # Panics
    /// Panics if it is not.
    #[track_caller]
    pub fn assert_intermediate(&self, name: &str, ours: &Tensor) {
        self.assert_value(name, ours, &self.intermediate(name));
    }

    /// Asserts that `ours` and `theirs` differ by less than [`VALUE_TOLERANCE`].
    ///
    /// # Panics
    /// Panics if they do not.
    #[track_caller]
    pub fn assert_value(&self, what: &str, ours: &Tensor, theirs: &Tensor) {
        let diff = max_abs_diff(ours, theirs);
        assert!(diff < VALUE_TOLERANCE, "{}: {what} differs by {diff}", self.name);
    }

    /// Compares 2.0's decoder with the reference's, which is named `name`, layer by layer.
    ///
    /// `tokens` are the features of all tokens, with noise at masked ones.
    ///
    /// # Panics
    /// Panics if a value differs.
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
        let decoder =
            Decoder::new(&path, &config.decoder, [config.transformer.dim; 2], Init::Torch);
        copy(&vars, &model.vars().variables(), "");
        let (layers, residual): (Vec<Tensor>, bool) = match (&decoder, &config.decoder) {
            (Decoder::Conv1d(conv), DecoderConfig::Conv1d { residual, .. }) => {
                (conv.layers(tokens).collect(), *residual)
            }
            (Decoder::Conv2d(conv), DecoderConfig::Conv2d { residual, .. }) => {
                (conv.layers(tokens).collect(), *residual)
            }
            _ => panic!("{name} is not a convolutional decoder"),
        };
        let mut input = &tokens.x;
        for (i, layer) in layers.iter().enumerate() {
            let theirs = self.intermediate(&format!("{name}.blocks.{i}")); // (B, dim, T) or (B, dim, h, w)
            let ours = if residual { layer - input } else { layer.shallow_clone() };
            self.assert_value("convolution", &ours, &theirs.flatten(2, -1).transpose(1, 2));
            input = layer;
        }
        let visible = Mask::new(mask.masked().mapv(|masked| !masked)).expect("visible tokens");
        for mask in [mask, &visible] {
            let theirs = mask.gather(&self.intermediate(name), 1);
            self.assert_value(name, &decoder.forward(tokens, mask), &theirs);
        }
    }

    /// Asserts that every intermediate value of the reference was compared.
    ///
    /// # Panics
    /// Panics if one was not.
    pub fn assert_all_intermediates_compared(&self) {
        let compared = self.compared.borrow();
        let all = self.forward.keys().filter(|name| name.starts_with("mid."));
        let missing: Vec<_> = all.filter(|&name| !compared.contains(name)).collect();
        assert!(
            missing.is_empty() && !compared.is_empty(),
            "{}: not compared: {missing:?}",
            self.name
        );
    }

    /// Compares targets, predictions and loss of the first step.
    ///
    /// # Panics
    /// Panics if one differs.
    pub fn assert_objective(&self, objective: &Objective) {
        self.assert_value("target", &objective.target, &self.forward["target.regression"]);
        self.assert_value("prediction", &objective.prediction, &self.forward["pred.regression"]);
        let loss = objective.loss.double_value(&[]) / objective.num_masked as f64;
        let expected = self.forward["loss.sum"].double_value(&[]) / self.loss_tokens;
        assert!(
            (loss / expected - 1.0).abs() < 1e-5,
            "{}: loss {loss}, expected {expected}",
            self.name
        );
    }

    /// Compares the gradients of `vars`, of a loss summed over `num_masked` tokens.
    ///
    /// # Panics
    /// Panics if one differs.
    pub fn assert_gradients(&self, vars: HashMap<String, Tensor>, num_masked: i64) {
        let grads = self.file("grad");
        for (name, var) in vars {
            let Some(expected) = self.expected(&grads, "grad", &name, &var) else { continue };
            let tolerance = 1e-5 + 1e-4 * expected.abs().max().double_value(&[]);
            let diff = max_abs_diff(&(var.grad() / num_masked as f64), &expected);
            assert!(diff < tolerance, "{}: gradient of {name} differs by {diff}", self.name);
        }
    }

    /// Compares `vars` with the reference's values of `prefix`.
    ///
    /// # Panics
    /// Panics if one differs by `WEIGHT_TOLERANCE` or more.
    #[track_caller]
    pub fn assert_weights(&self, vars: HashMap<String, Tensor>, prefix: &str) {
        let tensors = self.file(prefix);
        for (name, var) in vars {
            let Some(expected) = self.expected(&tensors, prefix, &name, &var) else { continue };
            let diff = self.names.max_abs_diff(&name, &var, &expected);
            assert!(diff < WEIGHT_TOLERANCE, "{}: {prefix} {name} differs by {diff}", self.name);
        }
    }

    /// Runs five steps and compares losses, gradient norms and weights.
    ///
    /// `step` takes the step's number from 0, and returns loss and gradient norm, both divided by the
    /// number of masked tokens. `teacher_updates` is the number of EMA updates in the reference's
    /// final state.
    ///
    /// # Panics
    /// Panics if a value differs.
    pub fn assert_five_steps<S, F: FeatureEncoder>(
        &self,
        mut state: S,
        model: impl Fn(&S) -> &Data2Vec<F>,
        mut step: impl FnMut(&mut S, usize) -> (f64, f64),
        teacher_updates: usize,
    ) {
        for i in 0..5 {
            let (loss, norm) = step(&mut state, i);
            let theirs = |name: &str| self.forward[name].double_value(&[i as i64]);
            for (what, ours, theirs) in [
                ("loss", loss, theirs("traj.loss") / self.loss_tokens),
                ("gradient norm", norm, theirs("traj.grad_norm")),
            ] {
                let close = (ours / theirs - 1.0).abs() < 1e-4;
                assert!(close, "{} step {i}: {what} {ours}, expected {theirs}", self.name);
            }
            let model = model(&state);
            if i == 0 {
                self.assert_weights(model.vars().variables(), "after_student");
                self.assert_weights(model.teacher().variables(), "after_teacher");
            }
            if i + 1 == teacher_updates {
                self.assert_weights(model.teacher().variables(), "final_teacher");
            }
        }
        self.assert_weights(model(&state).vars().variables(), "final_student");
    }
}

/// Copies to each of `vars` the value in `values` whose name is `prefix` and its own.
fn copy(vars: &nn::VarStore, values: &HashMap<String, Tensor>, prefix: &str) {
    for (name, mut var) in vars.variables() {
        tch::no_grad(|| var.copy_(&values[&format!("{prefix}{name}")]));
    }
}

/// Applies the layer norm `name` of `vars` to `x`.
pub fn layer_norm(vars: &HashMap<String, Tensor>, name: &str, x: &Tensor, eps: f64) -> Tensor {
    let store = nn::VarStore::new(Device::Cpu);
    let dim = x.size().last().copied().unwrap_or(1);
    let norm = LayerNorm::new(&store.root(), dim, eps);
    copy(&store, vars, &format!("{name}."));
    norm.forward(x)
}

/// Trains one step: backward pass, optimizer, teacher update. Returns loss and gradient norm, both
/// divided by the number of masked tokens.
///
/// # Panics
/// Panics if the step fails.
pub fn step<F: FeatureEncoder>(
    model: &mut Data2Vec<F>,
    optimizer: &mut AdamW,
    objective: &Objective,
    step: usize,
    clip: f64,
) -> (f64, f64) {
    let (count, step) = (objective.num_masked as f64, step as u64 + 1);
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

/// Makes the optimizer behave like fairseq's Adam.
pub fn fairseq_adam(config: AdamWConfig) -> AdamWConfig {
    let compat = vec![OptimizerCompat::FairseqEpsilon, OptimizerCompat::DecayEverything];
    AdamWConfig { compat, ..config }
}

/// Makes the optimizer behave like PyTorch's AdamW with weight decay on all parameters.
pub fn pytorch_adamw(config: AdamWConfig) -> AdamWConfig {
    AdamWConfig { compat: vec![OptimizerCompat::DecayEverything], ..config }
}
