//! AdamW with moments that have names, so that a checkpoint can hold them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use data2vec_torch_ext::dist::Ddp;
use data2vec_torch_ext::{FusedAdamW, fused_adamw};

use crate::checkpoint::{assign, read_tensors};
use crate::{Error, World, Result};

mod gradients;
mod shard;

pub use gradients::Gradients;
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
pub struct ParamGroup {
    /// Times the learning rate.
    pub scale: f64,
    /// Steps that it is left alone for; its own are counted from there.
    pub start: u64,
}

impl Default for ParamGroup {
    fn default() -> Self {
        Self { scale: 1.0, start: 0 }
    }
}

/// Parameters that share their weight decay and their pace, with their moments.
#[derive(Debug)]
struct Group {
    pace: ParamGroup,
    weight_decay: f64,
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
}

impl Group {
    fn new(pace: ParamGroup, weight_decay: f64) -> Self {
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
    ranks: World,
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
        Self::with_groups(variables, config, |_| ParamGroup::default())
    }

    /// The same, where each variable learns at the pace that belongs to its name.
    pub fn with_groups(
        variables: HashMap<String, Tensor>,
        config: &AdamWConfig,
        pace: impl Fn(&str) -> ParamGroup,
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
        Self { config: config.clone(), groups, ranks: World::default(), ddp: None, owners: None }
    }

    /// From now on, gradients are sums over all `ranks`. With `shard` each keeps the moments of a part of the
    /// parameters alone (ZeRO's first stage). `overlap`: the variables in the order in which they were made, which is
    /// about that of the forward pass; their gradients are exchanged while the backward pass of a step's last
    /// micro-batch goes on. `None`: after it, as behind activation checkpoints, which hide from LibTorch what they use.
    ///
    /// # Errors
    /// [`Error::Dist`] if LibTorch refuses.
    pub fn join(&mut self, ranks: &World, shard: bool, overlap: Option<Vec<Tensor>>) -> Result<()> {
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

    /// Step number `step` (counted from 1) by `gradients` over `divisor`.
    ///
    /// # Errors
    /// [`Error::Torch`] if LibTorch refuses.
    pub fn step(&mut self, step: u64, lr: f64, gradients: &Gradients, divisor: f64) -> Result<()> {
        for (number, grads) in gradients.groups.iter().enumerate() {
            let group = &self.groups[number];
            if step <= group.pace.start {
                continue;
            }
            let (lr, weight_decay) = (lr * group.pace.scale, group.weight_decay);
            let step = step - group.pace.start;
            let part = self.part(number, grads);
            let AdamWConfig { betas, eps, .. } = self.config;
            let settings = FusedAdamW { lr, betas, eps, weight_decay, divisor };
            if self.config.has(OptimizerCompat::FairseqEpsilon) {
                fairseq_step(&settings, &part, step);
            } else {
                let Part { params, grads, exp_avgs, exp_avg_sqs } = &part;
                fused_adamw(settings, step, params, grads, exp_avgs, exp_avg_sqs)?;
            }
        }
        if let Some(owners) = &self.owners {
            owners.share_params(&self.groups, &self.ranks)?;
        }
        Ok(())
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
        let first = self.ranks.is_rank0();
        let read = if first { read_tensors(path)? } else { BTreeMap::new() };
        match &self.owners {
            Some(owners) => owners.scatter(&self.groups, &self.ranks, path, &read),
            None if first => {
                assign(path, &self.state(), &read)?;
                self.ranks.broadcast_params(self.state())
            }
            None => self.ranks.broadcast_params(self.state()),
        }
    }
}

/// One step with epsilon outside the bias correction, in fairseq's order of operations.
fn fairseq_step(settings: &FusedAdamW, part: &Part, step: u64) {
    let FusedAdamW { lr, betas: [beta1, beta2], eps, weight_decay, divisor } = *settings;
    let corrected = |beta: f64| 1.0 - beta.powf(step as f64);
    let step_size = lr * corrected(beta2).sqrt() / corrected(beta1);
    tch::no_grad(|| {
        for (i, grad) in part.grads.iter().enumerate() {
            let [mut param, mut m, mut v] =
                [&part.params[i], &part.exp_avgs[i], &part.exp_avg_sqs[i]]
                    .map(Tensor::shallow_clone);
            let grad = grad / divisor;
            let _ = m.g_mul_scalar_(beta1);
            let _ = m.g_add_(&(&grad * (1.0 - beta1)));
            let _ = v.g_mul_scalar_(beta2);
            let _ = v.g_add_(&(grad.square() * (1.0 - beta2)));
            let _ = param.g_mul_scalar_(1.0 - lr * weight_decay);
            let _ = param.g_sub_(&(&m / (v.sqrt() + eps) * step_size));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, nn};

    /// A parameter of that value, and the gradients of a step where it has the gradient `grad`.
    fn one(value: f64, grad: f64, config: &AdamWConfig) -> (nn::VarStore, AdamW, Gradients) {
        let vars = nn::VarStore::new(Device::Cpu);
        let w = vars.root().var("w", &[1], nn::Init::Const(value));
        let optimizer = AdamW::new(vars.variables(), config);
        let gradients = optimizer
            .gradients((1, 0), &[(0, &grad)], |&grad, _, _| Ok((&w * grad).sum(Kind::Float)))
            .expect("a loss");
        (vars, optimizer, gradients)
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
            let (vars, mut optimizer, gradients) = one(1.0, 4e-6, &config(compat));
            optimizer.step(1, 0.1, &gradients, 4.0).expect("a step");
            let moved = 1.0 - vars.variables()["w"].double_value(&[0]);
            assert!((moved / 0.1 - expected).abs() < 1e-4, "{moved}");
        }
    }

    #[test]
    fn clipping_counts_the_mean_gradient() {
        let config =
            AdamWConfig { betas: [0.9, 0.98], eps: 1e-8, weight_decay: 0.1, compat: vec![] };
        let (_vars, mut optimizer, gradients) = one(1.0, 8.0, &config);
        let norm = gradients.norm.double_value(&[]);
        assert_eq!(norm, 8.0);
        optimizer
            .step(1, 0.0, &gradients, Gradients::divisor(norm, 4.0, Some(0.5)))
            .expect("a step");
        let m = optimizer.state()["exp_avg.w"].double_value(&[0]);
        assert!((m - 0.1 * 0.5).abs() < 1e-6, "{m}");
        assert_eq!(Gradients::divisor(1.0, 4.0, Some(0.5)), 4.0);
        assert_eq!(Gradients::divisor(8.0, 4.0, None), 4.0);
    }
}
