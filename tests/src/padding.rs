//! Compares a padded batch with each of its rows alone.

use data2vec_core::{Batch, Data2Vec, FeatureEncoder, Mask, Objective, Tokens};
use ndarray::Array2;
use tch::{Device, Kind, Tensor};

use crate::tiny::{max_abs_diff, regress};

/// Returns a mask of rows of `len` tokens; `rows` lists the masked tokens of each.
///
/// # Panics
/// Panics if no token is masked.
pub fn mask(len: usize, rows: &[&[usize]]) -> Mask {
    let masked = Array2::from_shape_fn((rows.len(), len), |(row, t)| rows[row].contains(&t));
    Mask::new(masked).expect("masked tokens")
}

fn objective<F: FeatureEncoder>(
    model: &Data2Vec<F>,
    batch: &Batch,
    tokens: &Tokens,
    masked: &[&[usize]],
    noise: &Tensor,
) -> Objective {
    let target = model.target(batch, tokens).expect("a valid batch");
    let mask = mask(tokens.num_tokens() as usize, masked);
    regress(model, tokens, &mask, &target, Some(noise), None)
}

/// Asserts that padding does not change results: the rows of `inputs`, of which `lengths` are valid,
/// give the same features of all blocks, targets, predictions and loss in one batch as alone.
///
/// `masked` lists the masked tokens of each row.
///
/// # Panics
/// Panics if a value differs by more than `tolerance`.
#[track_caller]
pub fn assert_padding_has_no_effect<F: FeatureEncoder>(
    version: &str,
    model: &Data2Vec<F>,
    inputs: &Tensor,
    lengths: &[i64],
    masked: &[&[usize]],
    tolerance: f64,
) {
    let batch = Batch::padded(inputs.shallow_clone(), lengths.to_vec()).expect("a batch");
    let tokens = model.student().embed(&batch, false).expect("a valid batch");
    assert!(tokens.padding.is_some(), "a row is padded");
    let noise = Tensor::randn(tokens.x.size(), (Kind::Float, Device::Cpu));
    let layers = model.student().forward(&batch).expect("a valid batch").layers;
    let batched = objective(model, &batch, &tokens, masked, &noise);
    let (mut start, mut loss) = (0, 0.0);
    for (row, (&len, &masked)) in lengths.iter().zip(masked).enumerate() {
        let num_tokens = tokens.lengths()[row];
        let row = row as i64;
        let slice_row = |x: &Tensor, len| x.narrow(0, row, 1).narrow(1, 0, len);
        let assert_same = |what: &str, x: &Tensor, alone: &Tensor| {
            let diff = max_abs_diff(x, alone);
            assert!(diff < tolerance, "{version}: {what} of row {row} differs by {diff}");
        };

        let batch = Batch::new(slice_row(inputs, len)).expect("a batch");
        let alone = model.student().forward(&batch).expect("a valid batch").layers;
        assert_eq!(alone.len(), layers.len());
        for (batched, alone) in layers.iter().zip(&alone) {
            assert_same("features", &slice_row(&batched.out, num_tokens), &alone.out);
            assert_same("MLP output", &slice_row(&batched.ffn, num_tokens), &alone.ffn);
        }
        let tokens = model.student().embed(&batch, false).expect("a valid batch");
        assert!(tokens.padding.is_none());
        let alone = objective(model, &batch, &tokens, &[masked], &slice_row(&noise, num_tokens));
        let count = alone.num_masked;
        assert_same("target", &batched.target.narrow(0, start, count), &alone.target);
        assert_same("prediction", &batched.prediction.narrow(0, start, count), &alone.prediction);
        start += count;
        loss += alone.loss.double_value(&[]);
    }
    assert_eq!(start, batched.num_masked);
    let sum = batched.loss.double_value(&[]);
    assert!((sum / loss - 1.0).abs() < 1e-5, "{version}: loss {sum}, alone {loss}");
}
