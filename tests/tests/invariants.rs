//! Properties that hold for any weights: targets, masking, padding, chunks and exported encoders.

use data2vec_core::io::checkpoint::read_tensors;
use data2vec_core::model::encoder::{ENCODER_CONFIG, ENCODER_WEIGHTS};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::train::chunks::forward_in_chunks;
use data2vec_core::{Batch, Data2Vec, Data2VecConfig, Encoder, Mask, Precision, Tokens};
use data2vec_speech::{ConvNorm, SpeechEncoder, WaveEncoder, WaveEncoderConfig};
use data2vec_tests::padding::{assert_padding_has_no_effect, mask};
use data2vec_tests::tiny::{self, FixedMask, max_abs_diff, regress};
use tch::{Device, Kind, Tensor};

/// Returns the number of samples of `frames` tokens: the tiny model has hop 40, receptive field 60.
fn samples(frames: i64) -> i64 {
    60 + 40 * (frames - 1)
}

fn wave(rows: i64, frames: i64) -> Tensor {
    tch::manual_seed(3);
    Tensor::randn([rows, samples(frames)], (Kind::Float, Device::Cpu))
}

fn both_versions() -> [(&'static str, Data2VecConfig<WaveEncoderConfig>); 2] {
    let mut v2 = tiny::speech_v2();
    v2.model.copies = 1;
    [("1.0", tiny::speech_v1()), ("2.0", v2)]
}

/// Creates a model whose teacher differs from its student.
fn model(config: Data2VecConfig<WaveEncoderConfig>, mask: &Mask) -> Data2Vec<WaveEncoder> {
    let model = tiny::model(config, FixedMask(mask.clone()));
    tch::no_grad(|| {
        for (_, mut tensor) in model.teacher().variables() {
            let _ = tensor.g_add_(&(tensor.randn_like() * 0.02));
        }
    });
    model
}

#[test]
fn targets_do_not_depend_on_mask() {
    let (a, b) = (mask(20, &[&[2, 3, 4, 9], &[1, 9]]), mask(20, &[&[2, 7, 8, 9, 15], &[9, 12]]));
    let shared = [(0, 2), (0, 9), (1, 9)];
    let row_of = |mask: &Mask, (row, token): (usize, usize)| {
        let before =
            mask.masked().indexed_iter().filter(|&(at, &h)| h && at < (row, token)).count();
        before as i64
    };
    for (name, config) in both_versions() {
        let batch = Batch::new(wave(2, 20)).expect("a batch");
        let targets = [&a, &b].map(|mask| {
            let model = seeded_model(config.clone(), mask);
            model
                .forward(&batch, &mut stream(1, Purpose::Step, &[0]), true)
                .expect("a forward pass")
                .target
        });
        for at in shared {
            let [x, y] = [(&targets[0], &a), (&targets[1], &b)].map(|(t, m)| t.get(row_of(m, at)));
            assert_eq!(max_abs_diff(&x, &y), 0.0, "{name} at {at:?}");
        }
    }
}

/// Creates a model with the same weights for every mask, whose teacher differs from its student.
fn seeded_model(config: Data2VecConfig<WaveEncoderConfig>, mask: &Mask) -> Data2Vec<WaveEncoder> {
    let model = tiny::model(config, FixedMask(mask.clone()));
    tch::no_grad(|| {
        for (_, mut tensor) in model.teacher().variables() {
            let _ = tensor.g_mul_scalar_(1.1);
        }
    });
    model
}

#[test]
fn student_predictions_do_not_depend_on_masked_content() {
    let mask = mask(20, &[&[5, 6, 7, 8, 9]]);
    for (name, config) in both_versions() {
        let model = model(config, &mask);
        let noise = Tensor::zeros([1, 20, 48], (Kind::Float, Device::Cpu));
        let before = wave(1, 20);
        // Samples in the receptive fields of masked tokens only: token t sees 40·t to 40·t + 59.
        let (from, to) = (4 * 40 + 60, 10 * 40);
        let after = before.copy();
        let _ = after.narrow(1, from, to - from).fill_(3.0);
        let predict = |samples: &Tensor| {
            let tokens =
                model.student().embed(&Batch::new(samples.copy()).expect("a batch"), false);
            let tokens = tokens.expect("tokens");
            let target = tokens.x.zeros_like();
            let prediction =
                regress(&model, &tokens, &mask, &target, Some(&noise), None).prediction;
            (prediction, tokens.x)
        };
        let ((a, tokens), (b, changed)) = (predict(&before), predict(&after));
        assert_eq!(max_abs_diff(&a, &b), 0.0, "{name}");
        // The masked tokens did change.
        assert!(max_abs_diff(&tokens.narrow(1, 5, 5), &changed.narrow(1, 5, 5)) > 0.1);
    }
}

#[test]
fn dropped_token_is_equivalent_to_padding() {
    // With the last token masked, the features of the visible ones equal those of a sequence that ends
    // before it.
    let mut config = tiny::speech_v2();
    config.features.pos_layers = 1; // a second layer would see the masked token through the first
    let model = tiny::model(config, FixedMask(mask(12, &[&[11], &[11]])));
    let tokens = Tensor::randn([2, 12, 48], (Kind::Float, Device::Cpu));
    let _ = tokens.narrow(1, 11, 1).fill_(0.0);
    let all = Tokens::new(tokens.copy(), None);
    let visible = mask(12, &[&[11], &[11]]).visible(all.lengths(), Device::Cpu);
    let dropped = model.student().contextualize(&all, Some(&visible), None);
    let dropped = dropped.expect("positions").x; // (2, 11, 48)
    let padded = Tokens::new(tokens, Some(vec![11, 11]));
    let kept = model.student().contextualize(&padded, None, None);
    let kept = kept.expect("positions").x; // (2, 12, 48)
    assert!(max_abs_diff(&dropped, &kept.narrow(1, 0, 11)) < 1e-5);
}

#[test]
fn more_padding_changes_nothing() {
    let lengths = [samples(20), samples(13)];
    let mask_of = |len| mask(len, &[&[2, 3, 4, 10, 19], &[1, 5, 6, 12]]);
    let noise = Tensor::randn([2, 30, 48], (Kind::Float, Device::Cpu));
    for (name, mut config) in both_versions() {
        for norm in [ConvNorm::Layer, ConvNorm::Group] {
            config.features.conv_norm = norm;
            let model = model(config.clone(), &mask_of(20));
            let source = wave(2, 20);
            let results = [20, 30].map(|frames| {
                let inputs = Tensor::full([2, samples(frames)], 7.0, (Kind::Float, Device::Cpu));
                for (row, &len) in lengths.iter().enumerate() {
                    let row = row as i64;
                    inputs.get(row).narrow(0, 0, len).copy_(&source.get(row).narrow(0, 0, len));
                }
                let batch = Batch::padded(inputs, lengths.to_vec()).expect("a batch");
                let tokens = model.student().embed(&batch, false).expect("tokens");
                let target = model.target(&batch, &tokens).expect("tokens");
                let noise = noise.narrow(1, 0, frames);
                let o = regress(
                    &model,
                    &tokens,
                    &mask_of(frames as usize),
                    &target,
                    Some(&noise),
                    None,
                );
                let output = model.student().forward(&batch).expect("tokens");
                let rows = [output.x.get(0).narrow(0, 0, 20), output.x.get(1).narrow(0, 0, 13)];
                (o.loss, o.prediction, o.target, Tensor::cat(&rows, 0))
            });
            let [a, b] = &results;
            for (what, x, y) in
                [("prediction", &a.1, &b.1), ("target", &a.2, &b.2), ("features", &a.3, &b.3)]
            {
                let diff = max_abs_diff(x, y);
                assert!(diff < 2e-5, "{name} {norm:?}: {what} differs by {diff}");
            }
            let (x, y) = (a.0.double_value(&[]), b.0.double_value(&[]));
            assert!((x / y - 1.0).abs() < 1e-5, "{name} {norm:?}: loss {x} and {y}");
        }
    }
}

#[test]
fn padded_rows_equal_single_rows() {
    let lengths = [samples(20), samples(9) + 17, samples(13)]; // the last 17 samples give no token
    let masked: [&[usize]; 3] = [&[2, 3, 4, 19], &[0, 5, 8], &[7, 12]];
    for (name, mut config) in both_versions() {
        for norm in [ConvNorm::Layer, ConvNorm::Group] {
            config.features.conv_norm = norm;
            let model = model(config.clone(), &mask(20, &[&[1]]));
            assert_padding_has_no_effect(name, &model, &wave(3, 20), &lengths, &masked, 1e-5);
        }
    }
}

#[test]
fn chunks_of_a_batch_add_up_to_it() {
    // Rows have different numbers of masked tokens, one has none; the last example is shorter. 2.0 has
    // two copies of two examples.
    let masked: [&[usize]; 4] = [&[2, 3, 4, 9], &[], &[1, 9, 15], &[0, 5, 12]];
    for ((name, mut config), layer_drop) in
        both_versions().into_iter().flat_map(|c| [(c.clone(), 0.0), (c, 0.5)])
    {
        config.model.noise_std = 0.0; // chunks sample different noise
        config.transformer.layer_drop = layer_drop;
        config.model.copies = if name == "1.0" { 1 } else { 2 };
        let rows = 4 / config.model.copies;
        let lengths = (1..=rows).map(|row| samples(if row < rows { 20 } else { 16 })).collect();
        let model = model(config, &mask(20, &masked));
        let batch = Batch::padded(wave(rows, 20), lengths).expect("a batch");
        let pass = |tokens: i64| {
            let (mut loss, mut chunks) = (0.0, 1);
            let mut add = |chunk_loss: &Tensor| {
                loss += chunk_loss.double_value(&[]);
                chunk_loss.backward();
            };
            let mut rng = stream(1, Purpose::Step, &[0]);
            let last = forward_in_chunks(&model, &batch, &mut rng, tokens, |chunk| {
                chunks += 1;
                add(&chunk.loss);
                Ok(())
            });
            add(&last.expect("a forward pass").loss);
            let mut grads: Vec<(String, Tensor)> = Vec::new();
            for (name, variable) in model.vars().variables() {
                let grad = variable.grad();
                if grad.defined() {
                    grads.push((name, grad.copy()));
                }
                variable.shallow_clone().zero_grad();
            }
            grads.sort_by(|a, b| a.0.cmp(&b.0));
            (chunks, loss, grads)
        };
        let whole = pass(i64::MAX);
        let [two, four] = [if name == "1.0" { 40 } else { 30 }, 10].map(pass);
        assert_eq!([whole.0, two.0, four.0], [1, 2, 4], "{name}");
        // Chunks of a batch share their dropped blocks, which differ from those of the whole batch.
        let expected = if layer_drop > 0.0 { &two } else { &whole };
        for (_, loss, grads) in [&two, &four] {
            assert!((loss / expected.1 - 1.0).abs() < 1e-5, "{name}: {loss} and {}", expected.1);
            assert_eq!(grads.len(), expected.2.len());
            for ((name, a), (_, b)) in expected.2.iter().zip(grads) {
                let largest = a.abs().max().double_value(&[]);
                assert!(max_abs_diff(a, b) < 1e-4 * largest.max(1e-3), "{name}");
            }
        }
    }
}

#[test]
fn exported_encoder_equals_student() {
    let dir = tempfile::tempdir().expect("a directory");
    let model = tiny::model(tiny::speech_v2(), FixedMask(mask(20, &[&[1]])));
    model.export(dir.path()).expect("written");
    let tensors = read_tensors(&dir.path().join(ENCODER_WEIGHTS)).expect("tensors");
    assert!(tensors.keys().all(|name| name.starts_with("encoder.")), "{:?}", tensors.keys());
    let student = model.vars().variables();
    let expected = student.keys().filter(|name| name.starts_with("encoder.")).count();
    assert_eq!(tensors.len(), expected);

    let batch = Batch::new(wave(1, 20)).expect("a batch");
    let (encoder, config) =
        Encoder::<WaveEncoder>::load(dir.path(), Device::Cpu).expect("an encoder");
    assert_eq!(config.features, model.config().features);
    let [a, b] = [&encoder, model.student()].map(|e| e.forward(&batch).expect("tokens").x);
    assert_eq!(max_abs_diff(&a, &b), 0.0);

    // `SpeechEncoder` gives the same features from plain samples.
    let samples = Vec::<f32>::try_from(batch.inputs.flatten(0, 1)).expect("floats");
    let speech = SpeechEncoder::load(dir.path(), Device::Cpu).expect("an encoder");
    let features = speech.features(&samples).expect("tokens");
    assert_eq!(features.dim(), (20, 48));
    assert!((f64::from(features[[7, 5]]) - a.double_value(&[0, 7, 5])).abs() < 1e-6);
}

#[test]
fn bf16_weights_give_the_same_features_as_autocast() {
    for config in [tiny::speech_v1(), tiny::speech_v2()] {
        let dir = tempfile::tempdir().expect("a directory");
        let model = tiny::model(config, FixedMask(mask(20, &[&[1]])));
        model.export(dir.path()).expect("written");
        let load = || Encoder::<WaveEncoder>::load(dir.path(), Device::Cpu).expect("an encoder").0;
        let batch = Batch::new(wave(2, 20)).expect("a batch");
        let autocast = Precision::Bf16.run(Device::Cpu, || load().forward(&batch));
        let autocast = autocast.expect("autocast").expect("tokens").x;
        let rounded = load().with_precision(Precision::Bf16).forward(&batch).expect("tokens").x;
        assert_eq!(max_abs_diff(&autocast, &rounded), 0.0);
        let full = load().with_precision(Precision::F32).forward(&batch).expect("tokens").x;
        let error = max_abs_diff(&full, &rounded) / full.abs().max().double_value(&[]);
        assert!(error > 0.0 && error < 0.05, "{error}");
    }
}

#[test]
fn invalid_export_is_an_error_with_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let model = tiny::model(tiny::speech_v2(), FixedMask(mask(20, &[&[1]])));
    model.export(dir.path()).expect("written");
    let weights = dir.path().join(ENCODER_WEIGHTS);
    let config = dir.path().join(ENCODER_CONFIG);
    let load = || {
        let error = SpeechEncoder::load(dir.path(), Device::Cpu).map(|_| ()).unwrap_err();
        error.to_string()
    };
    let bytes = std::fs::read(&weights).expect("a file");
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).expect("written");
    assert!(load().contains("encoder.safetensors"), "{}", load());
    std::fs::write(&weights, &bytes).expect("written");
    let text = std::fs::read_to_string(&config).expect("text");
    std::fs::write(&config, text.replace("dim = 48", "dim = 44")).expect("written");
    assert!(load().contains("has shape"), "{}", load());
    std::fs::write(&config, text.replace("\"wave\"", "\"patch\"")).expect("written");
    assert!(load().contains("`patch`, not `wave`"), "{}", load());
    std::fs::remove_file(&config).expect("a file");
    assert!(load().contains("encoder.toml"), "{}", load());
}

#[test]
fn invalid_batches_are_errors() {
    let model = tiny::model(tiny::speech_v1(), FixedMask(mask(20, &[&[1]])));
    let short = Batch::new(wave(1, 20).narrow(1, 0, 59)).expect("a batch");
    assert!(model.student().forward(&short).unwrap_err().to_string().contains("60"));
    let image = Batch::new(Tensor::zeros([1, 3, 8, 8], (Kind::Float, Device::Cpu)));
    assert!(model.student().forward(&image.expect("a batch")).is_err());
    assert!(Batch::new(Tensor::zeros([2, 0], (Kind::Float, Device::Cpu))).is_err());
    assert!(Batch::padded(wave(2, 4), vec![5]).is_err());
    assert!(Batch::padded(wave(1, 4), vec![1_000]).is_err());
}
