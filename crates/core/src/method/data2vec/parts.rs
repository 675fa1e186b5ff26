//! A batch in parts: many copies of few examples need much memory, and a part of them keeps a CPU as busy as all.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tch::{Device, Kind, Tensor};

use super::{Data2Vec, MaskedInput, Objective, Task};
use crate::batch::upload;
use crate::{Batch, Error, FeatureEncoder, Precision, Result};

impl<F: FeatureEncoder> Data2Vec<F> {
    /// How many tokens the student had best see at a time. On a CPU these keep all threads busy, and what is kept for
    /// their gradients is less than a base model itself; with bf16 products are so fast that adding up the gradients of
    /// smaller parts shows (of 1.0's text 9 % of a step, for a tenth of a GiB). A GPU is given all.
    pub fn tokens_at_once(&self) -> i64 {
        let values = match (self.device(), self.config.model.precision) {
            (Device::Cpu, Precision::F32) => 1 << 20,
            (Device::Cpu, Precision::Bf16) => 1 << 22,
            _ => return i64::MAX,
        };
        (values / self.config.transformer.dim).max(1)
    }

    /// A training pass over one batch, of which the student sees about `tokens` at a time. Embedding, masks and targets
    /// are made once for all. `take` is given the objective of each part but the last, and has to take its gradients
    /// before it returns; the last is returned, and its gradients are those of the embedding of all parts too. Losses
    /// and gradients add up to those of [`forward`](Self::forward), but for dropout, which draws other numbers.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and what `take` returns.
    pub fn forward_in_parts(
        &self,
        batch: &Batch,
        rng: &mut StdRng,
        tokens: i64,
        mut take: impl FnMut(Objective) -> Result<()>,
    ) -> Result<Objective> {
        let precision = self.config.model.precision;
        let task = precision.run(self.device(), || self.task(batch, rng, true))??;
        let (parts, last) = self.parts(&task, tokens);
        let answer = |task: &Task, rng: &mut StdRng| {
            precision.run(self.device(), || self.answer(task, Some(rng)))
        };
        if parts.is_empty() {
            return answer(&task, rng);
        }
        // All parts drop the same blocks.
        let drop: u64 = rng.random();
        let answer = |rows: &Range<usize>, x: &Tensor| {
            answer(&task.rows(rows, x), &mut StdRng::seed_from_u64(drop))
        };
        // One operation, with one gradient: that of a slice is as large as what it was cut from.
        let sizes: Vec<i64> = parts.iter().chain([&last]).map(|rows| rows.len() as i64).collect();
        let xs = task.shown.x.split_with_sizes(&sizes, 0);
        let (x, before) = xs.split_last().ok_or_else(|| Error::Input("no rows".into()))?;
        let mut grads = Vec::with_capacity(parts.len());
        for (rows, x) in parts.iter().zip(before) {
            let x = x.detach().set_requires_grad(x.requires_grad());
            take(answer(rows, &x)?)?;
            grads.extend(x.requires_grad().then(|| x.grad()));
        }
        let mut objective = answer(&last, x)?;
        // Worth nothing; their gradients are those that the other parts have left for the embedding.
        for (x, grad) in before.iter().zip(&grads) {
            let owed = (x * grad).sum(Kind::Float);
            objective.loss = &objective.loss + (&owed - owed.detach());
        }
        Ok(objective)
    }

    /// Rows that are taken together, the last ones apart: as many parts as there are `tokens` among those that the
    /// student sees, all of about the same number of rows.
    fn parts(&self, task: &Task, tokens: i64) -> (Vec<Range<usize>>, Range<usize>) {
        let hidden = match self.config.model.masked_input {
            MaskedInput::Replace => 0,
            MaskedInput::Drop => task.mask.num_hidden(),
        };
        let seen = task.shown.lengths().iter().sum::<i64>() - hidden;
        let rows = task.shown.lengths().len();
        let count = ((seen as f64 / tokens as f64).round() as usize).clamp(1, rows);
        let mut parts = (0..count).map(|i| i * rows / count..(i + 1) * rows / count);
        let last = parts.next_back().unwrap_or(0..rows);
        (parts.collect(), last)
    }
}

impl Task {
    /// Some of the rows, with `x` for their tokens.
    fn rows(&self, rows: &Range<usize>, x: &Tensor) -> Self {
        let copies = self.shown.lengths().len() as i64 / self.target.size()[0];
        let examples: Vec<i64> = rows.clone().map(|row| row as i64 / copies).collect();
        let examples = upload(&Tensor::from_slice(&examples), self.target.device());
        Self {
            shown: self.shown.rows(rows).with(x.shallow_clone()),
            mask: self.mask.rows(rows),
            target: self.target.index_select(0, &examples), // (R, T, D)
        }
    }
}
