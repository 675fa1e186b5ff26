//! Measures the health of a model.

use anyhow::Result;
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Batch, Data2Vec, FeatureEncoder, Health};

use crate::metrics::{HealthLine, Line};

/// Measures ranks and norms of `model` on a few sequences of `batch`. Seed and step of the run
/// choose the sequences and tokens.
///
/// # Errors
/// If a tensor operation fails.
pub fn measure<F: FeatureEncoder>(
    model: &Data2Vec<F>,
    batch: &Batch,
    (seed, step): (u64, u64),
) -> Result<Line> {
    let mut rng = stream(seed, Purpose::Health, &[step]);
    let Health {
        target_rank,
        block_ranks,
        local_rank,
        local_std,
        student_norm,
        teacher_norm,
        teacher_distance,
    } = model.health(batch, &mut rng)?;
    let named = [
        ("target_rank", target_rank),
        ("local_rank", local_rank),
        ("local_std", local_std),
        ("student_norm", student_norm),
        ("teacher_norm", teacher_norm),
        ("teacher_distance", teacher_distance),
    ];
    let named = named.map(|(name, value)| (name.to_owned(), value));
    let blocks = (1..).zip(block_ranks).map(|(i, rank)| (format!("block_{i:02}_rank"), rank));
    let metrics = named.into_iter().chain(blocks);
    let metrics = metrics.filter_map(|(name, value)| Some((name, value?))).collect();
    Ok(Line::Health(HealthLine { step, metrics }))
}
