//! Figures of health by their names in `metrics.jsonl`.

use anyhow::Result;
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Batch, Data2Vec, FeatureEncoder, Health};

use crate::metrics::{HealthLine, Line};

/// What `model` looks like inside on some of `batch`, after `step` steps of a run with this `seed`.
pub fn examine<F: FeatureEncoder>(
    model: &Data2Vec<F>,
    batch: &Batch,
    (seed, step): (u64, u64),
) -> Result<Line> {
    let mut rng = stream(seed, Purpose::Health, &[step]);
    let Health {
        target_rank,
        block_ranks,
        local_rank,
        local_var,
        student_norm,
        teacher_norm,
        teacher_distance,
    } = model.health(batch, &mut rng)?;
    let named = [
        ("target_rank", target_rank),
        ("local_rank", local_rank),
        ("local_var", local_var),
        ("student_norm", student_norm),
        ("teacher_norm", teacher_norm),
        ("teacher_distance", teacher_distance),
    ];
    let named = named.map(|(name, value)| (name.to_owned(), value));
    let blocks = (1..).zip(block_ranks).map(|(i, rank)| (format!("block_{i:02}_rank"), rank));
    let figures = named.into_iter().chain(blocks);
    let figures = figures.filter_map(|(name, value)| Some((name, value?))).collect();
    Ok(Line::Health(HealthLine { step, figures }))
}
