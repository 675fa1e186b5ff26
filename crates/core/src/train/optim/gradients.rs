//! From the losses of a step's micro-batches to one gradient.

use data2vec_torch_ext::{scope, total_norm};
use rand::rngs::StdRng;
use tch::{Kind, Tensor};

use super::AdamW;
use crate::Result;
use crate::random::{Purpose, seed_for, stream};

/// What a step's micro-batches on all ranks add up to.
#[derive(Debug)]
pub struct Gradients {
    pub(super) groups: Vec<Vec<Tensor>>,
    /// Scalar f32: the sum of this rank's losses, on the device.
    pub loss: Tensor,
    /// Scalar f32: the Euclidean norm of all of them. It is on the device: who reads it waits for them.
    pub norm: Tensor,
}

impl Gradients {
    /// What gradients of norm `norm` that are sums over `count` are divided by: to be means, and of a norm of at most
    /// `clip`.
    pub fn divisor(norm: f64, count: f64, clip: Option<f64>) -> f64 {
        let clipped = clip.map_or(1.0, |max| (max / (norm / count + 1e-6)).min(1.0));
        count / clipped
    }
}

impl AdamW {
    /// The gradients of a step: those of this rank's micro-batches, each with its place among those of all ranks,
    /// and of the other ranks. `loss` computes a micro-batch's, with randomness of its own for all that is drawn; of one
    /// in parts it gives all but the last to its third argument, which takes their gradients at once.
    ///
    /// # Errors
    /// What `loss` returns; [`Error::Torch`](crate::Error::Torch) if LibTorch refuses, [`Error::Dist`](crate::Error::Dist) if another rank is gone.
    pub fn gradients<B>(
        &self,
        (seed, step): (u64, u64),
        batches: &[(u64, &B)],
        mut loss: impl FnMut(&B, &mut StdRng, &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<Tensor>,
    ) -> Result<Gradients> {
        self.zero_grad()?;
        let mut losses = Vec::new();
        for (number, &(place, batch)) in batches.iter().enumerate() {
            let at = [step, place];
            // Dropout and noise draw from LibTorch's generator, all else from ours.
            tch::manual_seed(seed_for(seed, Purpose::Step, &at) as i64);
            let mut backward = |loss: &Tensor, last| {
                losses.push(loss.detach());
                scope(c"backward", || self.backward(loss, last))
            };
            let mut take = |part: &Tensor| backward(part, false);
            let loss = loss(batch, &mut stream(seed, Purpose::Step, &at), &mut take)?;
            backward(&loss, number + 1 == batches.len())?;
        }
        // None of this rank's examples was of use: the others wait for its gradients.
        if batches.is_empty() && self.ddp.is_some() {
            let params = self.groups.iter().flat_map(|group| &group.params);
            if let Some(any) = params.min_by_key(|param| param.numel()) {
                self.backward(&(any * 0.0).sum(Kind::Float), true)?;
            }
        }
        self.sum_gradients(&losses)
    }

    /// The backward pass of a micro-batch's `loss`; `last`: of those of this rank's step.
    fn backward(&self, loss: &Tensor, last: bool) -> Result<()> {
        match (&self.ddp, self.ranks.group()) {
            (Some(ddp), Some(group)) if last => Ok(ddp.backward(group, loss)?),
            _ => Ok(loss.f_backward()?),
        }
    }

    /// From now on no parameter has a gradient.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if LibTorch refuses.
    pub fn zero_grad(&self) -> Result<()> {
        for group in &self.groups {
            data2vec_torch_ext::zero_grad(&group.params)?;
        }
        Ok(())
    }

    /// What backward passes have left, added over all ranks unless that is done; zeros where nothing has arrived
    /// (dropped layers).
    fn sum_gradients(&self, losses: &[Tensor]) -> Result<Gradients> {
        let grad = |param: &Tensor| match param.grad() {
            grad if grad.defined() => grad,
            _ => param.zeros_like(),
        };
        let params = self.groups.iter().map(|group| &group.params);
        let groups: Vec<Vec<Tensor>> =
            tch::no_grad(|| params.map(|params| params.iter().map(grad).collect()).collect());
        let all: Vec<Tensor> = groups.iter().flatten().map(Tensor::shallow_clone).collect();
        if self.ddp.is_none() {
            self.ranks.sum(&all)?;
        }
        let norm = total_norm(&all)?;
        let loss = match losses.is_empty() {
            true => norm.zeros_like(),
            false => Tensor::stack(losses, 0).sum(Kind::Float),
        };
        Ok(Gradients { groups, loss, norm })
    }
}
