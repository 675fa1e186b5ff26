//! Pretraining steps: gradient accumulation, resuming, precision, checkpoints.

use std::collections::HashMap;
use std::sync::Mutex;

use data2vec_core::{Batch, Checkpoints, Data2VecConfig, Position, Precision, TrainState};
use data2vec_speech::{BlockMask, SpeechMaskConfig, WaveEncoder, WaveEncoderConfig};
use data2vec_tests::tiny::{self, max_abs_diff};
use tch::{Device, Kind, Tensor};

/// LibTorch has one CPU generator per process: tests that use it run one at a time.
static GENERATOR: Mutex<()> = Mutex::new(());

fn masking() -> SpeechMaskConfig {
    SpeechMaskConfig::Blocks(BlockMask { probability: 0.5, length: 5, adjust: 0.05 })
}

fn state(config: Data2VecConfig<WaveEncoderConfig>) -> TrainState<WaveEncoder> {
    tiny::state(tiny::model(config, masking()), &tiny::adamw())
}

/// Returns batch `number` of a deterministic stream.
fn batch(number: u64, rows: i64) -> Batch {
    let at = Tensor::arange(rows * 900, (Kind::Float, Device::Cpu)).reshape([rows, 900]);
    let wave = (&at * (0.05 + 0.01 * number as f64)).sin() + (at * 0.7).cos() * 0.3;
    Batch::new(wave).expect("a batch")
}

type Tensors = HashMap<String, Tensor>;

/// Returns all tensors of a checkpoint, sorted by name.
fn all_tensors(state: &TrainState<WaveEncoder>) -> Vec<(String, Tensor)> {
    let parts: [(&str, Tensors); 3] = [
        ("student", state.model.vars().variables()),
        ("teacher", state.model.teacher().variables()),
        ("optimizer", state.optim.optimizer.state()),
    ];
    let named = parts.into_iter().flat_map(|(part, tensors)| {
        tensors.into_iter().map(move |(name, tensor)| (format!("{part} {name}"), tensor.copy()))
    });
    let mut all: Vec<_> = named.collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[track_caller]
fn assert_same(a: &TrainState<WaveEncoder>, b: &TrainState<WaveEncoder>) {
    assert_eq!(a.optim.step, b.optim.step);
    let (a, b) = (all_tensors(a), all_tensors(b));
    assert_eq!(a.len(), b.len());
    for ((name, x), (_, y)) in a.iter().zip(&b) {
        assert!(x.equal(y), "{name} differs by {}", max_abs_diff(x, y));
    }
}

#[test]
fn resuming_is_bit_exact() {
    let _guard = GENERATOR.lock();
    let dir = tempfile::tempdir().expect("a directory");
    let mut bf16 = tiny::speech_v2();
    bf16.model.precision = Precision::Bf16;
    let configs = [("1.0", tiny::speech_v1()), ("2.0", tiny::speech_v2()), ("2.0 in bf16", bf16)];
    for (name, config) in configs {
        let config = tiny::with_dropout(config);
        let mut uninterrupted = state(config.clone());
        // Two micro-batches per step.
        let step = |s: &mut TrainState<WaveEncoder>| {
            let n = 2 * s.optim.step;
            s.step(&[batch(n, 2), batch(n + 1, 2)]).expect("a step")
        };
        let reports: Vec<_> = (0..6).map(|_| step(&mut uninterrupted)).collect();

        let checkpoints = Checkpoints::new(dir.path().join(name), 2, None).expect("a directory");
        let mut first = state(config.clone());
        for expected in &reports[..3] {
            assert_eq!(step(&mut first), *expected, "{name}: a repeated step");
        }
        let position = Position { step: 3, next_batch: 6 };
        checkpoints.save(position, |dir| first.snapshot()?.write(dir)).expect("written");
        let teacher: Vec<_> = all_tensors(&first);
        drop(first);
        tch::manual_seed(99); // the state of the generator must not matter

        let (found, path) =
            checkpoints.newest_up_to(u64::MAX).expect("a directory").good.expect("a checkpoint");
        assert_eq!(found, position);
        let mut second = state(config);
        second.load(&path, found.step).expect("a checkpoint");
        for ((name, x), (_, y)) in all_tensors(&second).iter().zip(&teacher) {
            assert!(x.equal(y), "loading changed {name}");
        }
        for expected in &reports[3..] {
            assert_eq!(step(&mut second), *expected, "{name}: a step after resuming");
        }
        assert_same(&uninterrupted, &second);
    }
}

#[test]
fn activation_checkpointing_is_bit_exact() {
    let _guard = GENERATOR.lock();
    for config in [tiny::speech_v1(), tiny::speech_v2()] {
        for precision in [Precision::F32, Precision::Bf16] {
            let run = |checkpointing| {
                let mut config = tiny::with_dropout(config.clone());
                config.model.activation_checkpointing = checkpointing;
                config.model.precision = precision;
                let mut state = state(config);
                let step = |n| state.step(&[batch(n, 2), batch(n + 9, 3)]).expect("a step");
                let reports: Vec<_> = (0..3).map(step).collect();
                (reports, state)
            };
            let ((reports, plain), (others, checkpointed)) = (run(false), run(true));
            assert_eq!(reports, others);
            assert_same(&plain, &checkpointed);
        }
    }
}

#[test]
fn bf16_losses_are_close_to_f32_and_state_is_f32() {
    let _guard = GENERATOR.lock();
    for config in [tiny::speech_v1(), tiny::speech_v2()] {
        let run = |precision| {
            let mut config = config.clone();
            config.model.precision = precision;
            let mut state = state(config);
            let step = |n: u64| state.step(&[batch(n % 5, 4)]).expect("a step").loss;
            let losses: Vec<f64> = (0..60).map(step).collect();
            (losses, state)
        };
        let ((full, _), (half, state)) = (run(Precision::F32), run(Precision::Bf16));
        assert_ne!(full, half);
        for (step, (a, b)) in full.iter().zip(&half).enumerate() {
            assert!((a / b - 1.0).abs() < 0.05, "step {step}: {a} and {b}");
        }
        assert!(full[59] < 0.8 * full[0], "{full:?}");
        for (name, tensor) in all_tensors(&state) {
            assert_eq!(tensor.kind(), Kind::Float, "{name}");
        }
    }
}

#[test]
fn micro_batches_equal_one_large_batch() {
    let _guard = GENERATOR.lock();
    // The same mask for every row, so that micro-batches have the masks of the large batch.
    #[derive(Debug)]
    struct EveryThird;
    impl data2vec_core::MaskStrategy for EveryThird {
        fn sample(
            &self,
            lengths: &[i64],
            len: i64,
            _: &mut rand::rngs::StdRng,
        ) -> data2vec_core::Result<data2vec_core::Mask> {
            let size = (lengths.len(), len as usize);
            data2vec_core::Mask::new(ndarray::Array2::from_shape_fn(size, |(_, t)| t % 3 == 1))
        }
    }
    let new = || {
        let model = tiny::model(tiny::speech_v1(), EveryThird);
        tiny::state(model, &tiny::adamw())
    };
    let (mut one, mut four) = (new(), new());
    for _ in 0..3 {
        let large = batch(1, 8).inputs;
        let parts: Vec<Batch> = (0..4)
            .map(|i| Batch::new(large.narrow(0, 2 * i, 2).copy()).expect("a batch"))
            .collect();
        let a = one.step(&[Batch::new(large.copy()).expect("a batch")]).expect("a step");
        let b = four.step(&parts).expect("a step");
        assert!((a.loss / b.loss - 1.0).abs() < 1e-5, "{} and {}", a.loss, b.loss);
        assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-4);
        assert!((a.target_std - b.target_std).abs() < 1e-5);
    }
    // The EMA is updated once per optimizer step: the teachers are equal too.
    for ((name, x), (_, y)) in all_tensors(&one).iter().zip(&all_tensors(&four)) {
        // Adam's first updates are close to the sign of the gradient, which for the key bias is rounding.
        let tolerance = if name.contains("attn.qkv.bias") { 5e-3 } else { 2e-4 };
        assert!(max_abs_diff(x, y) < tolerance, "{name}: {}", max_abs_diff(x, y));
    }
}

#[test]
fn teacher_is_an_ema_of_the_student() {
    let _guard = GENERATOR.lock();
    let mut s = state(tiny::speech_v2());
    let teacher: Tensors =
        s.model.teacher().variables().into_iter().map(|(n, t)| (n, t.copy())).collect();
    s.step(&[batch(0, 2)]).expect("a step");
    let (student, updated) = (s.model.vars().variables(), s.model.teacher().variables());
    for (name, before) in &teacher {
        let expected = match name.contains("features.embed.") {
            true => student[name].copy(), // 2.0 shares the feature encoder
            false => before * 0.9 + &student[name] * 0.1,
        };
        assert!(max_abs_diff(&updated[name], &expected) < 1e-6, "{name}");
        assert!(!updated[name].requires_grad());
    }
}

#[test]
fn randomness_depends_only_on_seed_and_step() {
    let _guard = GENERATOR.lock();
    let losses = |disturb: bool| -> Vec<f64> {
        let mut s = state(tiny::with_dropout(tiny::speech_v2()));
        (0..3)
            .map(|n| {
                if disturb {
                    let _ = Tensor::rand([17], (Kind::Float, Device::Cpu));
                }
                s.step(&[batch(n, 2)]).expect("a step").loss
            })
            .collect()
    };
    assert_eq!(losses(false), losses(true));
}

#[test]
fn step_with_nonfinite_loss_is_skipped() {
    let _guard = GENERATOR.lock();
    let mut s = state(tiny::speech_v2());
    let before = all_tensors(&s);
    let invalid = batch(0, 2);
    let _ = invalid.inputs.narrow(1, 100, 1).fill_(f64::NAN);
    let report = s.step(&[invalid]).expect("no error");
    assert!(report.skipped && report.step == 1);
    for ((name, x), (_, y)) in before.iter().zip(&all_tensors(&s)) {
        assert!(x.equal(y), "{name} changed");
    }
    assert!(!s.step(&[batch(1, 2)]).expect("a step").skipped);
}

#[test]
fn damaged_checkpoint_falls_back_to_the_previous_one() {
    let _guard = GENERATOR.lock();
    let dir = tempfile::tempdir().expect("a directory");
    let checkpoints = Checkpoints::new(dir.path(), 2, None).expect("a directory");
    let mut s = state(tiny::speech_v1());
    for step in 1..=3 {
        s.step(&[batch(step, 2)]).expect("a step");
        let position = Position { step, next_batch: step };
        checkpoints.save(position, |dir| s.snapshot()?.write(dir)).expect("written");
    }
    assert_eq!(checkpoints.steps().expect("a directory"), [3, 2], "the last two are kept");

    let newest = dir.path().join("step-00000003");
    let newest_valid = || {
        let newest = checkpoints.newest_up_to(u64::MAX).expect("a directory");
        (newest.good.map(|(position, _)| position.step), newest.damaged.len())
    };
    assert_eq!(newest_valid(), (Some(3), 0));
    for file in ["model.safetensors", "teacher.safetensors", "optimizer.safetensors"] {
        let path = newest.join(file);
        let bytes = std::fs::read(&path).expect("a file");
        for damage in ["truncated", "flipped", "removed"] {
            let mut broken = bytes.clone();
            match damage {
                "truncated" => broken.truncate(bytes.len() - 1),
                "flipped" => broken[bytes.len() / 2] ^= 1,
                _ => {}
            }
            std::fs::write(&path, broken).expect("written");
            if damage == "removed" {
                std::fs::remove_file(&path).expect("a file");
            }
            assert_eq!(newest_valid(), (Some(2), 1), "{file} {damage}");
        }
        std::fs::write(&path, bytes).expect("written");
    }
    assert_eq!(newest_valid(), (Some(3), 0));
    std::fs::write(newest.join("checkpoint.json"), "{").expect("written");
    assert_eq!(newest_valid(), (Some(2), 1));

    // An unfinished directory, left by a crash, is never read and is removed later.
    let failed = checkpoints.save(Position { step: 4, next_batch: 4 }, |_| {
        Err(data2vec_core::Error::Input("no space".into()))
    });
    assert!(failed.is_err());
    std::fs::create_dir(dir.path().join(".unfinished-5")).expect("written");
    let again = Checkpoints::new(dir.path(), 2, None).expect("a directory");
    assert_eq!(again.steps().expect("a directory"), [3, 2]);
    assert!(
        !dir.path().join(".unfinished-5").exists() && !dir.path().join(".unfinished-4").exists()
    );
}
