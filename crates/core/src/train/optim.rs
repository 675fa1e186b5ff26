//! AdamW with named moments, for checkpoints.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use data2vec_torch_ext::dist::Ddp;
use data2vec_torch_ext::{FusedAdamW, fused_adamw};

use crate::io::checkpoint::{assign, read_tensors};
use crate::{Error, Result, World};

mod gradients;
mod shard;

pub use gradients::Gradients;
use shard::Owners;

/// Behaviour of the released code that differs from the papers, for exact reproduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerCompat {
    /// Adds epsilon to the root of the second moment before bias correction, as fairseq's Adam does
    /// (`fairseq/optim/adam.py`); early steps on small gradients are smaller.
    FairseqEpsilon,
    /// Decays biases, norms and mask tokens, too, as the runs of fairseq do.
    DecayEverything,
}

/// Settings of [`AdamW`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Epsilon added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate; applies to matrices and kernels
    /// only.
    pub weight_decay: f64,
    /// Compatibility options of the released code.
    pub compat: Vec<OptimizerCompat>,
}

/// The optimizer of 2.0 Base for speech.
impl Default for AdamWConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.01, compat: Vec::new() }
    }
}

impl AdamWConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if self.betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            let reason = format!("must be at least 0 and below 1, not {:?}", self.betas);
            return Err(Error::config("optimizer.betas", reason));
        }
        if !(self.eps > 0.0) {
            return Err(Error::config(
                "optimizer.eps",
                format!("must be above 0, not {}", self.eps),
            ));
        }
        if !(self.weight_decay >= 0.0) {
            let reason = format!("must be at least 0, not {}", self.weight_decay);
            return Err(Error::config("optimizer.weight_decay", reason));
        }
        Ok(())
    }

    fn has(&self, compat: OptimizerCompat) -> bool {
        self.compat.contains(&compat)
    }
}

/// Learning rate multiplier and freezing of a group of parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamGroup {
    /// Multiplier of the learning rate.
    pub lr_scale: f64,
    /// Number of initial steps without updates; bias correction counts steps after them.
    pub freeze_steps: u64,
}

impl Default for ParamGroup {
    fn default() -> Self {
        Self { lr_scale: 1.0, freeze_steps: 0 }
    }
}

/// Parameters with the same settings and weight decay, and their moments.
#[derive(Debug)]
struct Group {
    settings: ParamGroup,
    weight_decay: f64,
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
}

impl Group {
    fn new(settings: ParamGroup, weight_decay: f64) -> Self {
        let (names, params) = (Vec::new(), Vec::new());
        let (exp_avgs, exp_avg_sqs) = (Vec::new(), Vec::new());
        Self { settings, weight_decay, names, params, exp_avgs, exp_avg_sqs }
    }

    /// Returns the names of the moments of parameter `i` in a checkpoint.
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
    world: World,
    /// Sums gradients over ranks during the last backward pass of a step; `None`: after it.
    ddp: Option<Ddp>,
    /// Owners of sharded moments; `None`: every rank has all moments.
    owners: Option<Owners>,
}

/// The parameters of a group that this rank updates, with gradients and moments.
struct OwnedParams {
    params: Vec<Tensor>,
    grads: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
}

impl AdamW {
    /// Creates an optimizer of all trainable variables, with moments of zero.
    pub fn new(variables: HashMap<String, Tensor>, config: &AdamWConfig) -> Self {
        Self::with_groups(variables, config, |_| ParamGroup::default())
    }

    /// Creates an optimizer of all trainable variables; `group_of` returns the settings by name.
    pub fn with_groups(
        variables: HashMap<String, Tensor>,
        config: &AdamWConfig,
        group_of: impl Fn(&str) -> ParamGroup,
    ) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        // Sorted: floating-point sums depend on the order, which a hash map does not define.
        let variables = BTreeMap::from_iter(variables);
        let is_decayed =
            |param: &Tensor| param.dim() > 1 || config.has(OptimizerCompat::DecayEverything);
        for decayed in [true, false] {
            let weight_decay = if decayed { config.weight_decay } else { 0.0 };
            for (name, param) in &variables {
                if !param.requires_grad() || is_decayed(param) != decayed {
                    continue;
                }
                let settings = group_of(name);
                let same =
                    |g: &&mut Group| g.settings == settings && g.weight_decay == weight_decay;
                let group = match groups.iter_mut().find(same) {
                    Some(group) => group,
                    None => {
                        groups.push(Group::new(settings, weight_decay));
                        let last = groups.len() - 1;
                        &mut groups[last]
                    }
                };
                group.add(name, param);
            }
        }
        Self { config: config.clone(), groups, world: World::default(), ddp: None, owners: None }
    }

    /// Joins a process group: gradients become sums over all ranks.
    ///
    /// With `shard`, each rank keeps the moments of a part of the parameters (ZeRO stage 1). With
    /// `overlap`, the variables in order of creation (about that of the forward pass), gradients
    /// are exchanged during the backward pass of the last micro-batch of a step. Pass `None` to
    /// exchange them after it, as activation checkpointing requires: it hides the use of
    /// parameters.
    ///
    /// # Errors
    /// Returns [`Error::Dist`] if communication fails.
    pub fn join(&mut self, world: &World, shard: bool, overlap: Option<Vec<Tensor>>) -> Result<()> {
        self.world = world.clone();
        let Some(group) = world.group().filter(|_| world.size() > 1) else { return Ok(()) };
        if shard {
            self.owners = Some(Owners::partition(&mut self.groups, world));
        }
        if let Some(mut params) = overlap {
            params.retain(Tensor::requires_grad);
            self.ddp = Some(Ddp::new(group, &params)?);
        }
        Ok(())
    }

    /// Returns whether this rank has the moments of parameter `i` of a group.
    fn is_owned(&self, group: usize, i: usize) -> bool {
        self.owners.as_ref().is_none_or(|owners| owners.is_mine(group, i))
    }

    /// Returns the parameters of a group that this rank updates.
    fn owned_params(&self, number: usize, grads: &[Tensor]) -> OwnedParams {
        let group = &self.groups[number];
        let owned: Vec<usize> = (0..grads.len()).filter(|&i| self.is_owned(number, i)).collect();
        let select = |list: &[Tensor]| owned.iter().map(|&i| list[i].shallow_clone()).collect();
        OwnedParams {
            params: select(&group.params),
            grads: select(grads),
            exp_avgs: select(&group.exp_avgs),
            exp_avg_sqs: select(&group.exp_avg_sqs),
        }
    }

    /// Updates the parameters with `gradients / divisor`; `step` counts from 1.
    ///
    /// # Errors
    /// Returns [`Error::Torch`] if an operation fails, and [`Error::Dist`] if communication fails.
    pub fn step(&mut self, step: u64, lr: f64, gradients: &Gradients, divisor: f64) -> Result<()> {
        for (number, grads) in gradients.groups.iter().enumerate() {
            let group = &self.groups[number];
            if step <= group.settings.freeze_steps {
                continue;
            }
            let (lr, weight_decay) = (lr * group.settings.lr_scale, group.weight_decay);
            let step = step - group.settings.freeze_steps;
            let owned = self.owned_params(number, grads);
            let AdamWConfig { betas, eps, .. } = self.config;
            let settings = FusedAdamW { lr, betas, eps, weight_decay, divisor };
            if self.config.has(OptimizerCompat::FairseqEpsilon) {
                fairseq_step(&settings, &owned, step);
            } else {
                let OwnedParams { params, grads, exp_avgs, exp_avg_sqs } = &owned;
                fused_adamw(settings, step, params, grads, exp_avgs, exp_avg_sqs)?;
            }
        }
        if let Some(owners) = &self.owners {
            owners.broadcast_params(&self.groups, &self.world)?;
        }
        Ok(())
    }

    /// Returns the moments that this rank has, as `exp_avg.NAME` and `exp_avg_sq.NAME`.
    pub fn state(&self) -> HashMap<String, Tensor> {
        let mut state = HashMap::new();
        for (number, group) in self.groups.iter().enumerate() {
            for i in (0..group.names.len()).filter(|&i| self.is_owned(number, i)) {
                let moments = group.moments(i).map(Tensor::shallow_clone);
                state.extend(group.moment_names(i).into_iter().zip(moments));
            }
        }
        state
    }

    /// Gathers the moments of all ranks on rank 0; the other ranks get their own moments only.
    ///
    /// All ranks must call it.
    ///
    /// # Errors
    /// Returns [`Error::Dist`] if communication fails.
    pub fn gather(&self) -> Result<HashMap<String, Tensor>> {
        match &self.owners {
            None => Ok(self.state()),
            Some(owners) => owners.gather(&self.groups, &self.world),
        }
    }

    /// Loads moments from the file `path`, which rank 0 reads for all ranks.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, and [`Error::Tensor`] if moments are missing or
    /// have another shape.
    pub fn load_state(&mut self, path: &Path) -> Result<()> {
        let rank0 = self.world.is_rank0();
        let read = if rank0 { read_tensors(path)? } else { BTreeMap::new() };
        match &self.owners {
            Some(owners) => owners.scatter(&self.groups, &self.world, path, &read),
            None if rank0 => {
                assign(path, &self.state(), &read)?;
                self.world.broadcast_params(self.state())
            }
            None => self.world.broadcast_params(self.state()),
        }
    }
}

/// Updates parameters with epsilon outside the bias correction, in the order of operations of
/// fairseq.
fn fairseq_step(settings: &FusedAdamW, owned: &OwnedParams, step: u64) {
    let FusedAdamW { lr, betas: [beta1, beta2], eps, weight_decay, divisor } = *settings;
    let corrected = |beta: f64| 1.0 - beta.powf(step as f64);
    let step_size = lr * corrected(beta2).sqrt() / corrected(beta1);
    tch::no_grad(|| {
        for (i, grad) in owned.grads.iter().enumerate() {
            let [mut param, mut m, mut v] =
                [&owned.params[i], &owned.exp_avgs[i], &owned.exp_avg_sqs[i]]
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

    /// Returns a parameter of value `value`, its optimizer and gradients of value `grad`.
    fn single_param(
        value: f64,
        grad: f64,
        config: &AdamWConfig,
    ) -> (nn::VarStore, AdamW, Gradients) {
        let vars = nn::VarStore::new(Device::Cpu);
        let w = vars.root().var("w", &[1], nn::Init::Const(value));
        let optimizer = AdamW::new(vars.variables(), config);
        let gradients = optimizer
            .gradients((1, 0), &[(0, &grad)], |&grad, _, _| Ok((&w * grad).sum(Kind::Float)))
            .expect("a loss");
        (vars, optimizer, gradients)
    }

    #[test]
    fn epsilon_is_added_before_or_after_bias_correction() {
        // At |g| = eps and β₂ = .98 the first update is .5·lr with PyTorch's AdamW and
        // 1/(1 + 1/√(1 − β₂)) ≈ .124·lr with fairseq's Adam.
        let config =
            |compat| AdamWConfig { betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.0, compat };
        for (compat, expected) in [
            (vec![], 0.5),
            (vec![OptimizerCompat::FairseqEpsilon], 1.0 / (1.0 + 1.0 / 0.02_f64.sqrt())),
        ] {
            let (vars, mut optimizer, gradients) = single_param(1.0, 4e-6, &config(compat));
            optimizer.step(1, 0.1, &gradients, 4.0).expect("a step");
            let moved = 1.0 - vars.variables()["w"].double_value(&[0]);
            assert!((moved / 0.1 - expected).abs() < 1e-4, "{moved}");
        }
    }

    #[test]
    fn clips_mean_gradient() {
        let config =
            AdamWConfig { betas: [0.9, 0.98], eps: 1e-8, weight_decay: 0.1, compat: vec![] };
        let (_vars, mut optimizer, gradients) = single_param(1.0, 8.0, &config);
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
