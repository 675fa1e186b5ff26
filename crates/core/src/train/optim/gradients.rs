//! Accumulation of the gradients of micro-batches.

use data2vec_torch_ext::{scope, total_norm};
use rand::rngs::StdRng;
use tch::{Kind, Tensor};

use super::AdamW;
use crate::Result;
use crate::random::{Purpose, seed_for, stream};

/// Gradients of a step, summed over micro-batches and ranks.
#[derive(Debug)]
pub struct Gradients {
    pub(super) groups: Vec<Vec<Tensor>>,
    /// Sum of the losses of this rank, a scalar f32 on the device.
    pub loss: Tensor,
    /// Euclidean norm of all gradients, a scalar f32 on the device; reading it waits for the
    /// device.
    pub norm: Tensor,
}

impl Gradients {
    /// Returns the divisor that turns gradients summed over `count` items, of norm `norm`, into
    /// means whose norm is at most `clip`.
    pub fn divisor(norm: f64, count: f64, clip: Option<f64>) -> f64 {
        let clipped = clip.map_or(1.0, |max| (max / (norm / count + 1e-6)).min(1.0));
        count / clipped
    }
}

/// Runs the backward pass of the loss of a chunk.
type BackwardChunk<'a> = &'a mut dyn FnMut(&Tensor) -> Result<()>;

impl AdamW {
    /// Computes the gradients of a step, summed over the micro-batches of all ranks.
    ///
    /// `batches` are the micro-batches of this rank with their indices among those of all ranks,
    /// which seed their random numbers. `loss` computes the loss of a micro-batch; if it splits one
    /// into chunks, it passes the loss of every chunk but the last to its third argument, which
    /// runs the backward pass at once.
    ///
    /// # Errors
    /// Returns the error of `loss`, [`Error::Torch`](crate::Error::Torch) if an operation fails,
    /// and [`Error::Dist`](crate::Error::Dist) if communication fails.
    pub fn gradients<B>(
        &self,
        (seed, step): (u64, u64),
        batches: &[(u64, &B)],
        mut loss: impl FnMut(&B, &mut StdRng, BackwardChunk<'_>) -> Result<Tensor>,
    ) -> Result<Gradients> {
        self.zero_grad()?;
        let mut losses = Vec::new();
        for (number, &(index, batch)) in batches.iter().enumerate() {
            let at = [step, index];
            // Dropout and noise use LibTorch's generator, everything else `rng`.
            tch::manual_seed(seed_for(seed, Purpose::Step, &at) as i64);
            let mut backward = |loss: &Tensor, last| {
                losses.push(loss.detach());
                scope(c"backward", || self.backward(loss, last))
            };
            let mut backward_chunk = |chunk: &Tensor| backward(chunk, false);
            let loss = loss(batch, &mut stream(seed, Purpose::Step, &at), &mut backward_chunk)?;
            backward(&loss, number + 1 == batches.len())?;
        }
        // Without a usable micro-batch this rank still takes part in the exchange of gradients.
        if batches.is_empty() && self.ddp.is_some() {
            let params = self.groups.iter().flat_map(|group| &group.params);
            if let Some(param) = params.min_by_key(|param| param.numel()) {
                self.backward(&(param * 0.0).sum(Kind::Float), true)?;
            }
        }
        self.collect_gradients(&losses)
    }

    /// Runs the backward pass of `loss`; `last` marks the last one of a step on this rank.
    fn backward(&self, loss: &Tensor, last: bool) -> Result<()> {
        match (&self.ddp, self.world.group()) {
            (Some(ddp), Some(group)) if last => Ok(ddp.backward(group, loss)?),
            _ => Ok(loss.f_backward()?),
        }
    }

    /// Clears the gradients of all parameters.
    ///
    /// # Errors
    /// Returns [`Error::Torch`](crate::Error::Torch) if an operation fails.
    pub fn zero_grad(&self) -> Result<()> {
        for group in &self.groups {
            data2vec_torch_ext::zero_grad(&group.params)?;
        }
        Ok(())
    }

    /// Collects the accumulated gradients and sums them over ranks, unless DDP has; parameters
    /// without a gradient (LayerDrop) get zeros.
    fn collect_gradients(&self, losses: &[Tensor]) -> Result<Gradients> {
        let grad = |param: &Tensor| match param.grad() {
            grad if grad.defined() => grad,
            _ => param.zeros_like(),
        };
        let params = self.groups.iter().map(|group| &group.params);
        let groups: Vec<Vec<Tensor>> =
            tch::no_grad(|| params.map(|params| params.iter().map(grad).collect()).collect());
        let all: Vec<Tensor> = groups.iter().flatten().map(Tensor::shallow_clone).collect();
        if self.ddp.is_none() {
            self.world.all_reduce_sum(&all)?;
        }
        let norm = total_norm(&all)?;
        let loss = match losses.is_empty() {
            true => norm.zeros_like(),
            false => Tensor::stack(losses, 0).sum(Kind::Float),
        };
        Ok(Gradients { groups, loss, norm })
    }
}
