//! Projects features to colours, and finds nearest neighbours.

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

/// Share of the values at each end that is clipped to the darkest or brightest level.
const CLIP: f64 = 0.02;

/// Red, green and blue.
type Colour = [u8; 3];

/// Projects all rows of `features`, each `(T, D)`, to their first three principal components, as
/// red, green and blue. Also returns the share of the variance in each component. Colours are
/// comparable between examples.
///
/// # Errors
/// If features are not finite, or a tensor operation fails.
pub fn colours(features: &[Tensor]) -> Result<(Vec<Vec<Colour>>, [f64; 3])> {
    let all = Tensor::f_cat(features, 0)?.f_to_kind(Kind::Double)?; // (N, D)
    ensure!(all.isfinite().all().f_int64_value(&[])? == 1, "features are not finite");
    let centred = &all - all.f_mean_dim(&[0_i64][..], true, Kind::Double)?;
    let covariance = centred.tr().f_matmul(&centred)?; // (D, D)
    let (variances, axes) = covariance.f_linalg_eigh("L")?; // in ascending order
    let (total, dim) = (variances.sum(Kind::Double).double_value(&[]), variances.size()[0]);
    let mut shares = [0.0; 3];
    let mut channels = Vec::new();
    for (i, share) in shares.iter_mut().enumerate() {
        let component = dim - 1 - i as i64;
        let values: Vec<f64> = match component {
            0.. => {
                if total > 0.0 {
                    *share = variances.double_value(&[component]).max(0.0) / total;
                }
                let axis = axes.f_select(1, component)?;
                // The sign of an axis is arbitrary: its largest entry is made positive.
                let largest = axis.double_value(&[axis.abs().argmax(0, false).int64_value(&[])]);
                (centred.f_matmul(&axis)? * largest.signum()).try_into()?
            }
            _ => vec![0.0; all.size()[0] as usize],
        };
        channels.push(levels(&values));
    }
    let mut rows = (0..channels[0].len()).map(|n| [channels[0][n], channels[1][n], channels[2][n]]);
    let colours = features.iter().map(|f| rows.by_ref().take(f.size()[0] as usize).collect());
    Ok((colours.collect(), shares))
}

/// Maps values to brightness; clips outliers, which would make all other values look alike.
fn levels(values: &[f64]) -> Vec<u8> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[(share * (sorted.len() - 1) as f64).round() as usize];
    let (low, high) = (at(CLIP), at(1.0 - CLIP));
    let level = |v: &f64| if high > low { ((v - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 };
    values.iter().map(|v| (25.0 + 215.0 * level(v)).round() as u8).collect()
}

/// For each of `rows`, returns the `count` other rows of `pooled` `(N, D)` with the largest cosine
/// after centring, and the cosines, the nearest first.
///
/// # Errors
/// If features are not finite, or a tensor operation fails.
pub fn nearest(pooled: &Tensor, rows: &[usize], count: usize) -> Result<Vec<Vec<(usize, f64)>>> {
    let pooled = pooled.f_to_kind(Kind::Double)?;
    ensure!(pooled.isfinite().all().f_int64_value(&[])? == 1, "features are not finite");
    let centred = &pooled - pooled.f_mean_dim(&[0_i64][..], true, Kind::Double)?;
    let norms = centred.f_norm_scalaropt_dim(2.0, &[1_i64][..], true)?.f_clamp_min(1e-12)?;
    let unit = centred / norms;
    let cosines = unit.f_matmul(&unit.tr())?; // (N, N)
    let mut all = Vec::new();
    for &row in rows {
        let cosines: Vec<f64> = cosines.f_get(row as i64)?.try_into()?;
        let mut others: Vec<(usize, f64)> =
            cosines.into_iter().enumerate().filter(|&(other, _)| other != row).collect();
        others.sort_by(|a, b| b.1.total_cmp(&a.1));
        others.truncate(count);
        all.push(others);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn colours_follow_the_largest_variance() {
        // Three directions in five dimensions with standard deviations 4, 2 and 1.
        let rows: Vec<f32> = (0..64)
            .flat_map(|i| {
                let sign = |bit: i32| if i >> bit & 1 == 1 { 1.0 } else { -1.0 };
                [0.0, 4.0 * sign(0), 1.0 * sign(2), 7.0, 2.0 * sign(1)]
            })
            .collect();
        let all = Tensor::from_slice(&rows).reshape([64, 5]);
        let (colours, shares) =
            colours(&[all.narrow(0, 0, 24), all.narrow(0, 24, 40)]).expect("colours");
        assert_eq!((colours[0].len(), colours[1].len()), (24, 40));
        for (share, expected) in shares.iter().zip([16.0 / 21.0, 4.0 / 21.0, 1.0 / 21.0]) {
            assert!((share - expected).abs() < 1e-9, "{shares:?}");
        }
        for (i, colour) in colours.concat().iter().enumerate() {
            let level = |bit: i32| if i >> bit & 1 == 1 { 240 } else { 25 };
            assert_eq!(*colour, [level(0), level(1), level(2)], "row {i}");
        }
        let flat = Tensor::ones([4, 2], (Kind::Float, Device::Cpu));
        assert_eq!(super::colours(&[flat]).expect("grey").0[0][0], [133, 133, 133]);
        let broken = Tensor::from_slice(&[f32::NAN, 0.0]).reshape([1, 2]);
        assert!(super::colours(&[broken]).is_err());
    }

    #[test]
    fn nearest_centres_features() {
        let rows = [[10.0, 1.0], [10.1, 1.1], [10.0, -1.0], [10.0, -1.2_f32]];
        let pooled = Tensor::from_slice(&rows.concat()).reshape([4, 2]);
        let found = nearest(&pooled, &[0, 3], 2).expect("neighbours");
        assert_eq!((found[0][0].0, found[1][0].0), (1, 2));
        assert!(found[0][0].1 > 0.8 && found[0][1].1 < 0.0, "{found:?}");
    }
}
