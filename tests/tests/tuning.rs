//! Fine-tuning of every modality: training, resuming, gradient accumulation, exported models.

use std::path::Path;

use data2vec_core::io::checkpoint::read_tensors;
use data2vec_core::model::head::{Activation, DenseConfig, HeadInit};
use data2vec_core::train::finetune::FinetuneMasks;
use data2vec_core::{
    Batch, Data2Vec, Data2VecConfig, FeatureEncoder, FinetuneConfig, FinetuneState, FinetunedModel,
    HeadConfig, HeadTask, LabelledBatch, MaskStrategy, Pool, Precision, StepConfig, Targets,
};
use data2vec_nlp::TokenEncoder;
use data2vec_speech::{SpanMask, SpeechMaskConfig, WaveEncoder};
use data2vec_tests::tiny::{self, FixedMask};
use data2vec_tests::{text, vision};
use data2vec_vision::PatchEncoder;
use ndarray::array;
use tch::{Device, Kind, Tensor};

fn config() -> FinetuneConfig {
    FinetuneConfig {
        freeze_steps: 1,
        freeze_local: false,
        layer_decay: 0.9,
        decay_embed: true,
        input_dropout: 0.0,
        dropout: 0.1,
        attention_dropout: 0.1,
        activation_dropout: 0.1,
        layer_drop: 0.2,
        drop_path: 0.1,
        precision: Precision::F32,
        activation_checkpointing: false,
    }
}

fn head(task: HeadTask, pool: Pool, labels: usize) -> HeadConfig {
    HeadConfig {
        task,
        pool,
        norm_eps: Some(1e-6),
        dropout: 0.1,
        init: HeadInit::Xavier,
        labels: (0..labels).map(|label| label.to_string()).collect(),
        dense: Some(DenseConfig { dim: 8, activation: Activation::Tanh }),
    }
}

/// Exports a randomly initialized encoder.
fn export_encoder<F: FeatureEncoder>(config: Data2VecConfig<F::Config>) -> tempfile::TempDir {
    let mask = data2vec_core::Mask::new(array![[true, false]]).expect("a mask");
    let model = Data2Vec::<F>::new(config, Box::new(FixedMask(mask)), Device::Cpu, 3);
    let dir = tempfile::tempdir().expect("a directory");
    model.expect("a valid config").export(dir.path()).expect("written");
    dir
}

/// A fine-tuning task.
struct Case {
    head: HeadConfig,
    batches: Vec<LabelledBatch>,
    masks: fn() -> FinetuneMasks,
    config: FinetuneConfig,
}

impl Case {
    fn state<F: FeatureEncoder>(&self, dir: &Path) -> FinetuneState<F> {
        let steps = StepConfig { steps: 100, clip_norm: Some(1.0), seed: 7 };
        let adamw = tiny::adamw();
        let optimizer = (&adamw, tiny::constant(3e-3), steps);
        let (head, masks, config) = (self.head.clone(), (self.masks)(), self.config.clone());
        FinetuneState::new(dir, false, head, masks, config, optimizer, Device::Cpu)
            .expect("a state")
    }

    /// Asserts that training reduces the loss, resumes exactly, keeps a frozen encoder, and that the
    /// exported model gives the same scores.
    fn check<F: FeatureEncoder>(&self, dir: &Path) {
        let mut uninterrupted = self.state::<F>(dir);
        let mut interrupted = self.state::<F>(dir);
        let before = read_tensors(&dir.join("encoder.safetensors")).expect("the encoder");
        let first = uninterrupted.step(&self.batches).expect("a step").loss;
        interrupted.step(&self.batches).expect("a step");
        // While the encoder is frozen, only the head changes.
        interrupted.export(dir.join("frozen").as_path()).expect("written");
        let frozen = read_tensors(&dir.join("frozen/encoder.safetensors")).expect("the encoder");
        for (name, tensor) in &frozen {
            // Variables that fine-tuning unshares between blocks have other names.
            assert!(before.get(name).is_none_or(|old| old == tensor), "{name}");
        }
        interrupted.step(&self.batches).expect("a step");
        let saved = dir.join("saved");
        std::fs::create_dir(&saved).expect("written");
        interrupted.snapshot().expect("memory").write(&saved).expect("written");
        let mut resumed = self.state::<F>(dir);
        resumed.load(&saved, 2).expect("saved tensors");
        let mut last = first;
        for step in 2..=30 {
            last = uninterrupted.step(&self.batches).expect("a step").loss;
            if step > 2 && step <= 5 {
                let report = resumed.step(&self.batches).expect("a step");
                assert_eq!((report.step, report.loss), (step, last));
            }
        }
        assert!(last < 0.9 * first, "{first} → {last}");

        let model = dir.join("model");
        uninterrupted.export(&model).expect("written");
        let finetuned = FinetunedModel::<F>::load(&model, Device::Cpu).expect("a model");
        for batch in &self.batches {
            let [ours, theirs] = [uninterrupted.score(batch, None), finetuned.score(batch)];
            assert_eq!(ours.expect("scores").scores, theirs.expect("scores").scores);
        }
    }
}

fn random(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu))
}

#[test]
fn finetunes_speech_with_ctc() {
    tch::manual_seed(1);
    let masks = || {
        let spans = |length| -> Option<Box<dyn MaskStrategy>> {
            let spans = SpanMask { probability: 0.2, length, min_spans: 1, same_count: false };
            Some(Box::new(SpeechMaskConfig::Spans(spans)))
        };
        FinetuneMasks { tokens: spans(2), channels: spans(4) }
    };
    let targets =
        Targets::Sequences { ids: Tensor::from_slice(&[1_i64, 2, 2, 3]), lengths: vec![3, 1] };
    let batch = Batch::padded(random(&[2, 1600]), vec![1600, 900]).expect("a batch");
    let head = head(HeadTask::Ctc, Pool::None, 5);
    let batches = vec![LabelledBatch { batch, targets }];
    let case =
        Case { head, batches, masks, config: FinetuneConfig { freeze_local: true, ..config() } };
    // Masked frames get the mask token in 1.0 and noise in 2.0.
    for model in [tiny::speech_v1(), tiny::speech_v2()] {
        case.check::<WaveEncoder>(export_encoder::<WaveEncoder>(model).path());
    }
}

#[test]
fn finetunes_image_classifier() {
    tch::manual_seed(2);
    for (model, pool, precision) in [
        (vision::v1(), Pool::Mean, Precision::F32),
        (vision::v2(), Pool::Prefix, Precision::F32),
        (vision::v2(), Pool::Mean, Precision::Bf16),
    ] {
        let [height, width] = model.features.image_size;
        let size = [2, model.features.channels, height, width];
        let probabilities = Tensor::from_slice2(&[[0.9_f32, 0.1, 0.0], [0.0, 0.3, 0.7]]);
        let batches = vec![
            LabelledBatch {
                batch: Batch::new(random(&size)).expect("a batch"),
                targets: Targets::SoftLabels(probabilities),
            },
            LabelledBatch {
                batch: Batch::new(random(&size)).expect("a batch"),
                targets: Targets::Classes(Tensor::from_slice(&[1_i64, 1])),
            },
        ];
        let head = head(HeadTask::Classification, pool, 3);
        let config = FinetuneConfig { precision, ..config() };
        // In bf16 the loaded model, in f32, gives other scores.
        let case = Case { head, batches, masks: FinetuneMasks::default, config };
        if precision == Precision::F32 {
            case.check::<PatchEncoder>(export_encoder::<PatchEncoder>(model).path());
        } else {
            let dir = export_encoder::<PatchEncoder>(model);
            let mut state = case.state::<PatchEncoder>(dir.path());
            let losses: Vec<f64> =
                (0..30).map(|_| state.step(&case.batches).expect("a step").loss).collect();
            assert!(losses[29] < 0.9 * losses[0], "{losses:?}");
        }
    }
}

#[test]
fn finetunes_text_regression() {
    tch::manual_seed(3);
    for model in [text::v1(), text::v2()] {
        let ids = Tensor::randint_low(
            4,
            model.features.vocabulary - 1,
            [3, 9],
            (Kind::Int64, Device::Cpu),
        );
        let batch = Batch::padded(ids, vec![9, 5, 7]).expect("a batch");
        let targets = Targets::Values(Tensor::from_slice(&[3.0_f32, -2.0, 0.5]));
        let case = Case {
            head: head(HeadTask::Regression, Pool::First, 1),
            batches: vec![LabelledBatch { batch, targets }],
            masks: FinetuneMasks::default,
            config: config(),
        };
        case.check::<TokenEncoder>(export_encoder::<TokenEncoder>(model).path());
    }
}

#[test]
fn micro_batches_equal_one_large_batch() {
    tch::manual_seed(4);
    let model = vision::v2();
    let [height, width] = model.features.image_size;
    let images = random(&[4, model.features.channels, height, width]);
    let dir = export_encoder::<PatchEncoder>(model);
    let deterministic = FinetuneConfig {
        freeze_steps: 0,
        dropout: 0.0,
        attention_dropout: 0.0,
        activation_dropout: 0.0,
        layer_drop: 0.0,
        drop_path: 0.0,
        ..config()
    };
    let head = HeadConfig { dropout: 0.0, ..head(HeadTask::Classification, Pool::Mean, 3) };
    let classes = Tensor::from_slice(&[0_i64, 2, 1, 2]);
    let part = |from: i64, len: i64| LabelledBatch {
        batch: Batch::new(images.narrow(0, from, len)).expect("a batch"),
        targets: Targets::Classes(classes.narrow(0, from, len)),
    };
    let reports = [vec![part(0, 4)], vec![part(0, 1), part(1, 3)]].map(|batches| {
        let case = Case {
            head: head.clone(),
            batches,
            masks: FinetuneMasks::default,
            config: deterministic.clone(),
        };
        let mut state = case.state::<PatchEncoder>(dir.path());
        state.step(&case.batches).expect("a step")
    });
    let [one, two] = reports;
    assert!((one.loss - two.loss).abs() < 1e-6 && (one.grad_norm - two.grad_norm).abs() < 1e-5);
}

#[test]
fn step_with_nonfinite_loss_is_skipped() {
    tch::manual_seed(5);
    let ids = Tensor::randint_low(4, 9, [2, 6], (Kind::Int64, Device::Cpu));
    let batch = Batch::new(ids).expect("a batch");
    let targets = Targets::Values(Tensor::from_slice(&[1.0_f32, f32::NAN]));
    let case = Case {
        head: head(HeadTask::Regression, Pool::First, 1),
        batches: vec![LabelledBatch { batch, targets }],
        masks: FinetuneMasks::default,
        config: FinetuneConfig { freeze_steps: 0, ..config() },
    };
    let dir = export_encoder::<TokenEncoder>(text::v2());
    let mut state = case.state::<TokenEncoder>(dir.path());
    let saved = |state: &FinetuneState<TokenEncoder>, name: &str| {
        let out = dir.path().join(name);
        std::fs::create_dir(&out).expect("written");
        state.snapshot().expect("memory").write(&out).expect("written");
        ["model.safetensors", "optimizer.safetensors"]
            .map(|file| read_tensors(&out.join(file)).expect("saved tensors"))
    };
    let before = saved(&state, "before");
    let report = state.step(&case.batches).expect("no error");
    assert!(report.skipped && report.step == 1 && report.grad_norm.is_nan());
    assert_eq!(before, saved(&state, "after"));
}
