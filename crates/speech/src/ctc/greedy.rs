//! Each frame's best label.

use data2vec_core::Result;
use ndarray::ArrayView2;

use super::{
    BLANK, Decoded, Labels,
    trace::{Said, Symbol, decoded},
};

/// The most probable way to say anything: each frame's best label (of equal ones the first),
/// neighbours that are equal joined, blanks left out.
///
/// `log_probs` is `(T, C)`, natural logarithms. The score is the sum of the best labels'.
///
/// # Errors
/// [`data2vec_core::Error::Input`] if there are not as many columns as labels, or one is not a
/// logarithm of a probability.
pub fn greedy(log_probs: ArrayView2<f32>, labels: &Labels) -> Result<Decoded> {
    labels.check(&log_probs)?;
    let (mut said, mut score, mut last): (Vec<Said>, f64, usize) = (Vec::new(), 0.0, BLANK);
    for (frame, row) in log_probs.rows().into_iter().enumerate() {
        let mut best = BLANK;
        for (label, &log_prob) in row.iter().enumerate() {
            if log_prob > row[best] {
                best = label;
            }
        }
        score += f64::from(row[best]);
        if best != BLANK {
            match said.last_mut() {
                Some(same) if best == last => same.end = frame + 1,
                _ => {
                    let symbol = match labels.separator {
                        Some(separator) if separator == best => Symbol::Break(None),
                        _ => Symbol::Label(best),
                    };
                    said.push(Said { symbol, start: frame, end: frame + 1 });
                }
            }
        }
        last = best;
    }
    Ok(decoded(&said, score, labels, None, &log_probs))
}
