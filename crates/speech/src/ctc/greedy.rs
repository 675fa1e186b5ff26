//! Greedy decoding.

use data2vec_core::Result;
use ndarray::ArrayView2;

use super::decoded::{Decoded, Emission, Symbol, assemble};
use super::labels::{BLANK, Labels};

/// Decodes the most probable alignment: the best label of each frame (the first of equal ones), equal
/// neighbours merged, blanks removed.
///
/// `log_probs` is `(T, C)`, natural logarithms. The score is the sum over the best labels.
///
/// # Errors
/// Returns [`data2vec_core::Error::Input`] if C is not the number of labels, or a value is no
/// log-probability.
pub fn greedy(log_probs: ArrayView2<f32>, labels: &Labels) -> Result<Decoded> {
    labels.check(&log_probs)?;
    let (mut emissions, mut score, mut last): (Vec<Emission>, f64, usize) =
        (Vec::new(), 0.0, BLANK);
    for (frame, row) in log_probs.rows().into_iter().enumerate() {
        let mut best = BLANK;
        for (label, &log_prob) in row.iter().enumerate() {
            if log_prob > row[best] {
                best = label;
            }
        }
        score += f64::from(row[best]);
        if best != BLANK {
            match emissions.last_mut() {
                Some(same) if best == last => same.end = frame + 1,
                _ => {
                    let symbol = match labels.separator() {
                        Some(separator) if separator == best => Symbol::WordEnd(None),
                        _ => Symbol::Label(best),
                    };
                    emissions.push(Emission { symbol, start: frame, end: frame + 1 });
                }
            }
        }
        last = best;
    }
    Ok(assemble(&emissions, score, labels, None, &log_probs))
}
