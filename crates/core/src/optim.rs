//! AdamW with moments that have names, so that a checkpoint can hold them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use data2vec_torch_ext::dist::Ddp;
use data2vec_torch_ext::{FusedAdamW, fused_adamw, scale, total_norm};

use crate::checkpoint::{assign, read_tensors};
use crate::{Error, Ranks, Result};

mod shard;

use shard::Owners;

/// Released behaviour that departs from the papers' intent, for exact reproduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerCompat {
    /// fairseq's Adam adds epsilon to the root of the second moment before bias correction, which
    /// makes early steps on small gradients smaller (`fairseq/optim/adam.py`).
    FairseqEpsilon,
    /// fairseq's runs decay biases, norms and mask tokens too.
    DecayEverything,
}

/// Settings of [`AdamW`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate; for matrices and kernels alone.
    pub weight_decay: f64,
    /// Departures from the above.
    pub compat: Vec<OptimizerCompat>,
}

impl AdamWConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if self.betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            let reason = format!("{:?} are not two numbers in 0..1", self.betas);
            return Err(Error::config("optimizer.betas", reason));
        }
        if !(self.eps > 0.0) {
            return Err(Error::config("optimizer.eps", format!("{} is not above 0", self.eps)));
        }
        if !(self.weight_decay >= 0.0) {
            let reason = format!("{} is below 0", self.weight_decay);
            return Err(Error::config("optimizer.weight_decay", reason));
        }
        Ok(())
    }

    fn has(&self, compat: OptimizerCompat) -> bool {
        self.compat.contains(&compat)
    }
}

/// How a parameter learns, against the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Times the learning rate.
    pub scale: f64,
    /// Steps that it is left alone for; its own are counted from there.
    pub start: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { scale: 1.0, start: 0 }
    }
}

/// Parameters that share their weight decay and their pace, with their moments.
#[derive(Debug)]
struct Group {
    pace: Pace,
    weight_decay: f64,
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
}

impl Group {
    fn new(pace: Pace, weight_decay: f64) -> Self {
        let (names, params) = (Vec::new(), Vec::new());
        let (exp_avgs, exp_avg_sqs) = (Vec::new(), Vec::new());
        Self { pace, weight_decay, names, params, exp_avgs, exp_avg_sqs }
    }

    /// What a checkpoint calls the moments of parameter `i`.
    fn moment_names(&self, i: usize) -> [String; 2] {
        ["exp_avg", "exp_avg_sq"].map(|moment| format!("{moment}.{}", self.names[i]))
    }

    fn moments(&self, i: usize) -> [&Tensor; 2] {
        [&self.exp_avgs[i], &self.exp_avg_sqs[i]]
    }

    fn add(&mut self, name: &str, param: &Tensor) {
        let zeros = || tch::no_grad(|| param.zeros_like());
        self.names.push(name.to_owned());
        self.params.push(param.shallow_clone());
        self.exp_avgs.push(zeros());
        self.exp_avg_sqs.push(zeros());
    }
}

/// AdamW (Loshchilov and Hutter 2019) over named parameters.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    groups: Vec<Group>,
    ranks: Ranks,
    /// Sums gradients over ranks during the last backward pass of a step; `None`: that is left for the step.
    ddp: Option<Ddp>,
    /// Who keeps which moments; `None`: every rank all of them.
    owners: Option<Owners>,
}

/// A part of a group, with its gradients.
struct Part {
    params: Vec<Tensor>,
    grads: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
}

impl AdamW {
    /// Moments of zero for every trainable variable.
    pub fn new(variables: HashMap<String, Tensor>, config: &AdamWConfig) -> Self {
        Self::paced(variables, config, |_| Pace::default())
    }

    /// The same, where each variable learns at the pace that belongs to its name.
    pub fn paced(
        variables: HashMap<String, Tensor>,
        config: &AdamWConfig,
        pace: impl Fn(&str) -> Pace,
    ) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        // Sorted: sums over parameters do not depend on a hash map's order.
        let variables = BTreeMap::from_iter(variables);
        let is_decayed =
            |param: &Tensor| param.dim() > 1 || config.has(OptimizerCompat::DecayEverything);
        for decayed in [true, false] {
            let weight_decay = if decayed { config.weight_decay } else { 0.0 };
            for (name, param) in &variables {
                if !param.requires_grad() || is_decayed(param) != decayed {
                    continue;
                }
                let pace = pace(name);
                let same = |g: &&mut Group| g.pace == pace && g.weight_decay == weight_decay;
                let group = match groups.iter_mut().find(same) {
                    Some(group) => group,
                    None => {
                        groups.push(Group::new(pace, weight_decay));
                        let last = groups.len() - 1;
                        &mut groups[last]
                    }
                };
                group.add(name, param);
            }
        }
        Self { config: config.clone(), groups, ranks: Ranks::default(), ddp: None, owners: None }
    }

    /// From now on, gradients are sums over all `ranks`. With `shard` each keeps the moments of a part of the
    /// parameters alone (ZeRO's first stage). `overlap`: the variables in the order in which they were made, which is
    /// about that of the forward pass; their gradients are exchanged while the backward pass of a step's last
    /// micro-batch goes on. `None`: after it, as behind activation checkpoints, which hide from LibTorch what they use.
    ///
    /// # Errors
    /// [`Error::Dist`] if LibTorch refuses.
    pub fn join(&mut self, ranks: &Ranks, shard: bool, overlap: Option<Vec<Tensor>>) -> Result<()> {
        self.ranks = ranks.clone();
        let Some(group) = ranks.group().filter(|_| ranks.count() > 1) else { return Ok(()) };
        if shard {
            self.owners = Some(Owners::divide(&mut self.groups, ranks));
        }
        if let Some(mut params) = overlap {
            params.retain(Tensor::requires_grad);
            self.ddp = Some(Ddp::new(group, &params)?);
        }
        Ok(())
    }

    /// The backward pass of a micro-batch's `loss`; `last`: of those of this rank's step.
    ///
    /// # Errors
    /// [`Error::Torch`] if LibTorch refuses, [`Error::Dist`] if another rank is gone.
    pub fn backward(&self, loss: &Tensor, last: bool) -> Result<()> {
        match (&self.ddp, self.ranks.group()) {
            (Some(ddp), Some(group)) if last => Ok(ddp.backward(group, loss)?),
            _ => Ok(loss.f_backward()?),
        }
    }

    /// In place of the backward passes of a step where this rank has no micro-batch, none of its examples being of
    /// use: the others wait for its gradients.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_of_none(&self) -> Result<()> {
        let params = self.groups.iter().flat_map(|group| &group.params);
        match params.min_by_key(|param| param.numel()) {
            Some(any) if self.ddp.is_some() => {
                self.backward(&(any * 0.0).sum(tch::Kind::Float), true)
            }
            _ => Ok(()),
        }
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        for param in self.groups.iter_mut().flat_map(|g| &mut g.params) {
            param.zero_grad();
        }
    }

    /// Gradients, group by group; zeros where none has arrived (dropped layers).
    fn grads(&self) -> Vec<Vec<Tensor>> {
        let grad = |param: &Tensor| match param.grad() {
            grad if grad.defined() => grad,
            _ => param.zeros_like(),
        };
        self.groups.iter().map(|group| group.params.iter().map(grad).collect()).collect()
    }

    /// Whether this rank keeps the moments of parameter `i` of a group.
    fn keeps(&self, number: usize, i: usize) -> bool {
        self.owners.as_ref().is_none_or(|owners| owners.is_mine(number, i))
    }

    /// What this rank moves of a group.
    fn part(&self, number: usize, grads: &[Tensor]) -> Part {
        let group = &self.groups[number];
        let mine: Vec<usize> = (0..grads.len()).filter(|&i| self.keeps(number, i)).collect();
        let of = |list: &[Tensor]| mine.iter().map(|&i| list[i].shallow_clone()).collect();
        Part {
            params: of(&group.params),
            grads: of(grads),
            exp_avgs: of(&group.exp_avgs),
            exp_avg_sqs: of(&group.exp_avg_sqs),
        }
    }

    /// Adds the gradients of all ranks, unless that is done, divides them by `count`, clips them to the norm
    /// `clip`, and takes step number `step` (counted from 1). Returns the norm before clipping; if that is not finite,
    /// nothing has been changed.
    ///
    /// # Errors
    /// [`Error::Torch`] if LibTorch refuses.
    pub fn step(&mut self, step: u64, lr: f64, count: f64, clip: Option<f64>) -> Result<f64> {
        let grads = tch::no_grad(|| self.grads());
        let all: Vec<Tensor> = grads.iter().flatten().map(Tensor::shallow_clone).collect();
        if self.ddp.is_none() {
            self.ranks.sum(&all)?;
        }
        let norm = total_norm(&all)?.double_value(&[]) / count;
        if !norm.is_finite() {
            return Ok(norm);
        }
        let clipped = clip.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
        scale(&all, clipped / count)?;
        for (number, grads) in grads.iter().enumerate() {
            let group = &self.groups[number];
            if step <= group.pace.start {
                continue;
            }
            let (lr, weight_decay) = (lr * group.pace.scale, group.weight_decay);
            let step = step - group.pace.start;
            let part = self.part(number, grads);
            if self.config.has(OptimizerCompat::FairseqEpsilon) {
                fairseq_step(&self.config, &part, step, lr, weight_decay);
            } else {
                let AdamWConfig { betas, eps, .. } = self.config;
                let settings = FusedAdamW { lr, betas, eps, weight_decay };
                let Part { params, grads, exp_avgs, exp_avg_sqs } = &part;
                fused_adamw(settings, step, params, grads, exp_avgs, exp_avg_sqs)?;
            }
        }
        if let Some(owners) = &self.owners {
            owners.share_params(&self.groups, &self.ranks)?;
        }
        Ok(norm)
    }

    /// Both moments of every parameter that this rank keeps: `exp_avg.NAME`, `exp_avg_sq.NAME`.
    pub fn state(&self) -> HashMap<String, Tensor> {
        let mut state = HashMap::new();
        for (number, group) in self.groups.iter().enumerate() {
            for i in (0..group.names.len()).filter(|&i| self.keeps(number, i)) {
                let moments = group.moments(i).map(Tensor::shallow_clone);
                state.extend(group.moment_names(i).into_iter().zip(moments));
            }
        }
        state
    }

    /// The same of all ranks, on rank 0; all ranks have to call it. The others get what they keep.
    ///
    /// # Errors
    /// [`Error::Dist`] if a rank is gone.
    pub fn gather(&self) -> Result<HashMap<String, Tensor>> {
        match &self.owners {
            None => Ok(self.state()),
            Some(owners) => owners.gather(&self.groups, &self.ranks),
        }
    }

    /// Takes over moments from the file `path`, which rank 0 reads for all.
    ///
    /// # Errors
    /// If it cannot be read; [`Error::Tensor`] if moments are missing or of another shape.
    pub fn load_state(&mut self, path: &Path) -> Result<()> {
        let first = self.ranks.is_first();
        let read = if first { read_tensors(path)? } else { BTreeMap::new() };
        match &self.owners {
            Some(owners) => owners.scatter(&self.groups, &self.ranks, path, &read),
            None if first => {
                assign(path, &self.state(), &read)?;
                self.ranks.follow_first(self.state())
            }
            None => self.ranks.follow_first(self.state()),
        }
    }
}

/// One step with epsilon outside the bias correction, in fairseq's order of operations.
fn fairseq_step(config: &AdamWConfig, part: &Part, step: u64, lr: f64, weight_decay: f64) {
    let [beta1, beta2] = config.betas;
    let corrected = |beta: f64| 1.0 - beta.powf(step as f64);
    let step_size = lr * corrected(beta2).sqrt() / corrected(beta1);
    tch::no_grad(|| {
        for (i, grad) in part.grads.iter().enumerate() {
            let [mut param, mut m, mut v] =
                [&part.params[i], &part.exp_avgs[i], &part.exp_avg_sqs[i]]
                    .map(Tensor::shallow_clone);
            let _ = m.g_mul_scalar_(beta1);
            let _ = m.g_add_(&(grad * (1.0 - beta1)));
            let _ = v.g_mul_scalar_(beta2);
            let _ = v.g_add_(&(grad.square() * (1.0 - beta2)));
            let _ = param.g_mul_scalar_(1.0 - lr * weight_decay);
            let _ = param.g_sub_(&(&m / (v.sqrt() + config.eps) * step_size));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, nn};

    fn one(value: f32, grad: f64, config: &AdamWConfig) -> (nn::VarStore, AdamW) {
        let vars = nn::VarStore::new(Device::Cpu);
        let w = vars.root().var("w", &[1], nn::Init::Const(f64::from(value)));
        (&w * grad).sum(Kind::Float).backward();
        let optimizer = AdamW::new(vars.variables(), config);
        (vars, optimizer)
    }

    #[test]
    fn epsilon_before_or_after_bias_correction() {
        // At |g| = eps and β₂ = .98 the first update is .5·lr with PyTorch's AdamW and
        // 1/(1 + 1/√(1 − β₂)) ≈ .124·lr with fairseq's Adam.
        let config =
            |compat| AdamWConfig { betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.0, compat };
        for (compat, expected) in [
            (vec![], 0.5),
            (vec![OptimizerCompat::FairseqEpsilon], 1.0 / (1.0 + 1.0 / 0.02_f64.sqrt())),
        ] {
            let (vars, mut optimizer) = one(1.0, 1e-6, &config(compat));
            optimizer.step(1, 0.1, 1.0, None).expect("a step");
            let moved = 1.0 - vars.variables()["w"].double_value(&[0]);
            assert!((moved / 0.1 - expected).abs() < 1e-4, "{moved}");
        }
    }

    #[test]
    fn clipping_counts_the_mean_gradient_and_non_finite_ones_change_nothing() {
        let config =
            AdamWConfig { betas: [0.9, 0.98], eps: 1e-8, weight_decay: 0.1, compat: vec![] };
        let (_vars, mut optimizer) = one(1.0, 8.0, &config);
        assert_eq!(optimizer.step(1, 0.0, 4.0, Some(0.5)).expect("a step"), 2.0);
        let m = optimizer.state()["exp_avg.w"].double_value(&[0]);
        assert!((m - 0.1 * 0.5).abs() < 1e-6, "{m}");

        let (vars, mut optimizer) = one(1.0, f64::NAN, &config);
        assert!(optimizer.step(1, 0.1, 1.0, None).expect("a step").is_nan());
        assert_eq!(vars.variables()["w"].double_value(&[0]), 1.0);
    }
}
