//! A padded batch and each of its rows alone.

use data2vec_core::{Batch, Data2Vec, FeatureEncoder, Mask, Objective, Tokens};
use ndarray::Array2;
use tch::{Device, Kind, Tensor};

use crate::tiny::difference;

/// Rows of `len` tokens of which those named are hidden.
///
/// # Panics
/// If nothing is hidden.
pub fn mask(len: usize, rows: &[&[usize]]) -> Mask {
    let hidden = Array2::from_shape_fn((rows.len(), len), |(row, t)| rows[row].contains(&t));
    Mask::new(hidden).expect("something hidden")
}

fn objective<F: FeatureEncoder>(
    model: &Data2Vec<F>,
    batch: &Batch,
    tokens: &Tokens,
    hidden: &[&[usize]],
    noise: &Tensor,
) -> Objective {
    let target = model.target(batch, tokens).expect("a good batch");
    let mask = mask(tokens.num_tokens() as usize, hidden);
    model.regress(tokens, &mask, &target, Some(noise), None)
}

/// Rows of `inputs`, of which `lengths` are real, give the same in one batch as each alone: features
/// of all blocks, targets, predictions and loss. `hidden` names the hidden tokens of each row.
///
/// # Panics
/// If something differs by more than `gate`.
#[track_caller]
pub fn assert_rows_are_as_alone<F: FeatureEncoder>(
    version: &str,
    model: &Data2Vec<F>,
    inputs: &Tensor,
    lengths: &[i64],
    hidden: &[&[usize]],
    gate: f64,
) {
    let batch = Batch::padded(inputs.shallow_clone(), lengths.to_vec()).expect("a batch");
    let tokens = model.student().embed(&batch, false).expect("a good batch");
    assert!(tokens.padding.is_some(), "something is padded");
    let noise = Tensor::randn(tokens.x.size(), (Kind::Float, Device::Cpu));
    let layers = model.student().forward(&batch).expect("a good batch").layers;
    let together = objective(model, &batch, &tokens, hidden, &noise);
    let (mut start, mut loss) = (0, 0.0);
    for (row, (&len, &hidden)) in lengths.iter().zip(hidden).enumerate() {
        let real = tokens.lengths()[row];
        let row = row as i64;
        let of_row = |x: &Tensor, len| x.narrow(0, row, 1).narrow(1, 0, len);
        let assert_same = |what: &str, x: &Tensor, alone: &Tensor| {
            let off = difference(x, alone);
            assert!(off < gate, "{version}: {what} of row {row} off by {off}");
        };

        let batch = Batch::new(of_row(inputs, len)).expect("a batch");
        let alone = model.student().forward(&batch).expect("a good batch").layers;
        assert_eq!(alone.len(), layers.len());
        for (together, alone) in layers.iter().zip(&alone) {
            assert_same("features", &of_row(&together.out, real), &alone.out);
            assert_same("an MLP's output", &of_row(&together.ffn, real), &alone.ffn);
        }
        let tokens = model.student().embed(&batch, false).expect("a good batch");
        assert!(tokens.padding.is_none());
        let alone = objective(model, &batch, &tokens, &[hidden], &of_row(&noise, real));
        let count = alone.num_hidden;
        assert_same("target", &together.target.narrow(0, start, count), &alone.target);
        assert_same("prediction", &together.prediction.narrow(0, start, count), &alone.prediction);
        start += count;
        loss += alone.loss.double_value(&[]);
    }
    assert_eq!(start, together.num_hidden);
    let sum = together.loss.double_value(&[]);
    assert!((sum / loss - 1.0).abs() < 1e-5, "{version}: loss {sum}, alone {loss}");
}
