//! Runs the student on some rows of a batch at a time: many copies of few examples need much
//! memory, and a part of them keeps a CPU as busy as all.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tch::{Device, Kind, Tensor};

use crate::data::batch::{Batch, upload};
use crate::error::{Error, Result};
use crate::method::config::MaskedInput;
use crate::method::data2vec::{Data2Vec, Objective, StudentInput};
use crate::model::feature::FeatureEncoder;
use crate::train::precision::Precision;

/// Returns how many tokens the student sees at a time. On a CPU this many keep all threads busy, and
/// the activations kept for their gradients need less memory than a Base model. In bf16 products are
/// so fast that accumulating the gradients of smaller chunks shows (9 % of a step of 1.0's text, for
/// a tenth of a GiB). A GPU gets all tokens at once.
pub fn tokens_per_chunk<F: FeatureEncoder>(model: &Data2Vec<F>) -> i64 {
    let config = model.config();
    let values = match (model.device(), config.model.precision) {
        (Device::Cpu, Precision::F32) => 1 << 20,
        (Device::Cpu, Precision::Bf16) => 1 << 22,
        _ => return i64::MAX,
    };
    (values / config.transformer.dim).max(1)
}

/// Runs a training pass over one batch in chunks of about `tokens` tokens. Embedding, mask and
/// targets are computed once for all chunks.
///
/// `backward` receives the objective of each chunk but the last and must run its backward pass before
/// it returns. The last objective is returned; its backward pass also reaches the embedding of the
/// other chunks. Losses and gradients add up to those of [`Data2Vec::forward`], except for dropout,
/// which draws other numbers.
///
/// # Errors
/// As [`Data2Vec::forward`], and what `backward` returns.
pub fn forward_in_chunks<F: FeatureEncoder>(
    model: &Data2Vec<F>,
    batch: &Batch,
    rng: &mut StdRng,
    tokens: i64,
    mut backward: impl FnMut(Objective) -> Result<()>,
) -> Result<Objective> {
    let input = model.prepare(batch, rng, true)?;
    let chunks = chunks(model.config().model.masked_input, &input, tokens);
    let Some((last, before)) = chunks.split_last().filter(|(_, before)| !before.is_empty()) else {
        return model.student_forward(&input, Some(rng));
    };
    // All chunks drop the same blocks.
    let seed: u64 = rng.random();
    let forward = |rows: &Range<usize>, x: &Tensor| {
        model.student_forward(&select(&input, rows, x), Some(&mut StdRng::seed_from_u64(seed)))
    };
    // One split has one gradient; that of each slice would be as large as the whole tensor.
    let sizes: Vec<i64> = chunks.iter().map(|rows| rows.len() as i64).collect();
    let xs = input.tokens.x.split_with_sizes(&sizes, 0);
    let (last_x, xs) = xs.split_last().ok_or_else(|| Error::Input("no rows".into()))?;
    let mut grads = Vec::with_capacity(before.len());
    for (rows, x) in before.iter().zip(xs) {
        let x = x.detach().set_requires_grad(x.requires_grad());
        backward(forward(rows, &x)?)?;
        grads.extend(x.requires_grad().then(|| x.grad()));
    }
    let mut objective = forward(last, last_x)?;
    // Zero-valued terms whose backward pass injects the saved gradients of the earlier chunks.
    for (x, grad) in xs.iter().zip(&grads) {
        let term = (x * grad).sum(Kind::Float);
        objective.loss = &objective.loss + (&term - term.detach());
    }
    Ok(objective)
}

/// Divides the rows into chunks of about `tokens` tokens that the student sees, all of about the same
/// number of rows.
fn chunks(masked_input: MaskedInput, input: &StudentInput, tokens: i64) -> Vec<Range<usize>> {
    let dropped = match masked_input {
        MaskedInput::Replace => 0,
        MaskedInput::Drop => input.mask.num_masked(),
    };
    let seen = input.tokens.lengths().iter().sum::<i64>() - dropped;
    let rows = input.tokens.lengths().len();
    let count = ((seen as f64 / tokens as f64).round() as usize).clamp(1, rows);
    (0..count).map(|i| i * rows / count..(i + 1) * rows / count).collect()
}

/// Selects some rows of `input`, with `x` for their tokens.
fn select(input: &StudentInput, rows: &Range<usize>, x: &Tensor) -> StudentInput {
    let StudentInput { tokens, mask, target, noise } = input;
    let copies = tokens.lengths().len() as i64 / target.size()[0];
    let examples: Vec<i64> = rows.clone().map(|row| row as i64 / copies).collect();
    let examples = upload(&Tensor::from_slice(&examples), target.device());
    StudentInput {
        tokens: tokens.rows(rows).with_x(x.shallow_clone()),
        mask: mask.rows(rows),
        target: target.index_select(0, &examples), // (R, T, D)
        noise: noise.as_ref().map(|x| x.narrow(0, rows.start as i64, rows.len() as i64)),
    }
}
