//! The course of a run's metrics, in a few lines.

use crate::metrics::Line;
use crate::report::{curves, number};

/// The most telling metrics: tag, name, and whether the largest value is the best, if there is a
/// best.
const METRICS: [(&str, &str, Option<bool>); 6] = [
    ("held_out/explained_content", "explained content", None),
    ("held_out/explained_variance", "explained variance", None),
    ("held_out/explained_by_position", "explained by positions alone", None),
    ("train/target_std", "standard deviation of the targets", None),
    ("probe/accuracy", "probe", Some(true)),
    ("validation/loss", "held-out loss", Some(false)),
];

/// Describes the course of the most telling metrics, one line each.
pub fn summary(lines: &[Line]) -> Vec<String> {
    let curves = curves(lines);
    let known = METRICS.iter().map(|(tag, name, best)| (*tag, *name, *best));
    // Each fine-tuning task has metrics of its own.
    let others = curves.keys().filter(|tag| !METRICS.iter().any(|(known, ..)| known == tag));
    let others =
        others.filter_map(|tag| Some((tag.as_str(), tag.strip_prefix("validation/")?, None)));
    let lines = known.chain(others).filter_map(|(tag, name, is_greatest)| {
        let values = curves.get(tag)?;
        let (first, last) = (values.first()?, values.last()?);
        let order = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
        let best = is_greatest.and_then(|is_greatest| match is_greatest {
            true => values.iter().max_by(order),
            false => values.iter().min_by(order),
        });
        let best = best.filter(|best| best.1 != last.1);
        let at = |(step, value): &(u64, f64)| format!("{} at step {step}", number(*value));
        let best = best.map_or(String::new(), |best| format!(", best {}", at(best)));
        Some(format!("{name}: {}, {}{best}", at(first), at(last)))
    });
    lines.collect()
}
