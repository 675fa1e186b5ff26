//! `target.source = "input"`: the objectives of methods made for one modality, with the same encoder.

use std::collections::HashMap;
use std::path::Path;

use data2vec_core::random::{Purpose, stream};
use data2vec_core::{
    Batch, CrossEntropy, Data2Vec, Data2VecConfig, Error, FeatureEncoder, InputTarget, Loss, Mask,
    RegressionLoss, StepConfig, TargetConfig, TrainState, TransformerConfig, padding_mask,
};
use data2vec_nlp::TokenEncoder;
use data2vec_speech::WaveEncoder;
use data2vec_tests::padding::mask;
use data2vec_tests::tiny::{self, FixedMask, constant, max_abs_diff};
use data2vec_tests::{text, vision};
use data2vec_vision::PatchEncoder;
use ndarray::Array2;
use tch::{Device, Kind, Tensor, nn};

fn goldens() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/input_losses.safetensors");
    Tensor::read_safetensors(path).expect("the file").into_iter().collect()
}

/// Returns a mask `(B, T)` of a tensor.
fn mask_of(masked: &Tensor) -> Mask {
    let (rows, columns) = masked.size2().expect("two dimensions");
    let values: Vec<bool> = masked.flatten(0, 1).try_into().expect("bool");
    let masked = Array2::from_shape_vec((rows as usize, columns as usize), values);
    Mask::new(masked.expect("as many values")).expect("a mask")
}

fn encoder<F: FeatureEncoder>(config: &F::Config, transformer: &TransformerConfig) -> F {
    F::new(&nn::VarStore::new(Device::Cpu).root(), config, transformer)
}

#[test]
fn pixels_have_the_loss_of_mae() {
    let goldens = goldens();
    let config = vision::v2();
    let patches: PatchEncoder = encoder(&config.features, &config.transformer);
    let batch = Batch::new(goldens["mae.pixels"].shallow_clone()).expect("images");
    let mask = mask_of(&goldens["mae.mask"]);
    let target = mask.gather(&patches.input_values(&batch).expect("pixels"), 1); // (N, 192)
    let prediction = mask.gather(&goldens["mae.prediction"], 1);
    // The mean over pixels.
    let loss = RegressionLoss { beta: 0.0, scale: Some(1.0 / 192.0), cls: None };
    let loss = loss.sum(&prediction, &target).double_value(&[]) / mask.num_masked() as f64;
    let expected = goldens["mae.loss"].double_value(&[]);
    assert!((loss - expected).abs() < 1e-5, "{loss}, {expected}");
}

#[test]
fn tokens_have_the_loss_of_masked_language_models() {
    let goldens = goldens();
    let config = text::v2();
    let tokens: TokenEncoder = encoder(&config.features, &config.transformer);
    let batch = Batch::new(goldens["mlm.ids"].shallow_clone()).expect("ids");
    let mask = mask_of(&goldens["mlm.mask"]);
    let target = mask.gather(&tokens.input_values(&batch).expect("ids"), 1); // (N, 1)
    let logits = mask.gather(&goldens["mlm.logits"], 1);
    let loss = CrossEntropy { classes: 64, scale: 1.0 };
    let loss = loss.sum(&logits, &target).double_value(&[]) / mask.num_masked() as f64;
    let expected = goldens["mlm.loss"].double_value(&[]);
    assert!((loss - expected).abs() < 1e-5, "{loss}, {expected}");
}

/// A frame is computed from the samples that its token sees, and from no other.
#[test]
fn log_mel_frames_are_aligned_with_tokens() {
    let config = tiny::speech_v2();
    let wave: WaveEncoder = encoder(&config.features, &config.transformer);
    let (window, hop) = (config.features.receptive_field(), config.features.hop());
    let frames =
        |samples: &Tensor| data2vec_speech::log_mel(samples, [window, hop], 80).expect("frames");
    tch::manual_seed(1);
    let samples = Tensor::randn([1, 40 * hop + 17], (Kind::Float, Device::Cpu));
    let batch = Batch::new(samples.shallow_clone()).expect("samples");
    let tokens = wave.embed(&batch, false).expect("tokens").num_tokens();
    assert_eq!(frames(&samples).size(), [1, tokens, 80]);
    let changed = samples.copy();
    let at = 20 * hop; // the first sample of frame 20, which a Hann window multiplies by 0
    let _ = changed.narrow(1, at + 1, 1).fill_(9.0);
    let differs = (frames(&changed) - frames(&samples)).abs().amax([2], false).gt(1e-7);
    let differs: Vec<bool> = differs.flatten(0, 1).try_into().expect("bool");
    let first = (at + 1 - window) / hop + 1;
    for (frame, differs) in (0..).zip(differs) {
        assert_eq!(differs, (first..=20).contains(&frame), "frame {frame}");
    }
}

#[test]
fn padding_does_not_change_log_mel_targets() {
    let config = tiny::speech_v2();
    let wave: WaveEncoder = encoder(&config.features, &config.transformer);
    tch::manual_seed(1);
    let long = Tensor::randn([1, 900], (Kind::Float, Device::Cpu));
    let short = Tensor::randn([1, 500], (Kind::Float, Device::Cpu));
    let both = Tensor::cat(&[&long, &short.constant_pad_nd([0, 400])], 0);
    let batch = Batch::padded(both, vec![900, 500]).expect("samples");
    let padded = wave.input_values(&batch).expect("frames");
    let alone = wave.input_values(&Batch::new(short).expect("samples")).expect("frames");
    let len = alone.size()[1];
    let real = padded.narrow(0, 1, 1).narrow(1, 0, len);
    assert!(max_abs_diff(&real, &alone) < 1e-4);
    let padding = padding_mask(&[padded.size()[1], len], padded.size()[1], Device::Cpu);
    let rest = padded.masked_select(&padding.expect("padding").unsqueeze(-1));
    assert_eq!(rest.abs().max().double_value(&[]), 0.0);
    let means = alone.mean_dim(&[1_i64][..], false, Kind::Float).abs().max();
    assert!(means.double_value(&[]) < 1e-4, "normalised over time");
}

/// Trains on one batch for some steps. Returns the first and the last loss.
fn train<F: FeatureEncoder>(
    mut config: Data2VecConfig<F::Config>,
    mask: Mask,
    inputs: Tensor,
) -> (f64, f64) {
    config.target = TargetConfig::INPUT;
    config.loss.cls = None;
    let width = F::input_target(&config.features).map(InputTarget::width);
    let model = Data2Vec::<F>::new(config, Box::new(FixedMask(mask)), Device::Cpu, 1);
    let model = model.expect("a valid config");
    let batch = Batch::new(inputs).expect("a batch");
    let objective = model.forward(&batch, &mut stream(1, Purpose::Step, &[0]), false);
    let objective = objective.expect("a forward pass");
    assert_eq!(Some(objective.prediction.size()[1]), width);
    assert_eq!(objective.prediction.size(), objective.target.size());
    let steps = StepConfig { steps: 40, clip_norm: None, seed: 1 };
    let mut state = TrainState::new(model, &tiny::adamw(), constant(3e-3), steps).expect("a state");
    let batches = [batch];
    let mut losses = (0..40).map(|_| state.step(&batches).expect("a step").loss);
    let first = losses.next().expect("steps");
    (first, losses.last().expect("steps"))
}

#[test]
fn each_modality_learns_to_predict_its_input() {
    let options = (Kind::Float, Device::Cpu);
    tch::manual_seed(3);
    let rows = |count: usize| -> Vec<&[usize]> { vec![&[1, 2, 5][..]; count] };
    let samples = Tensor::randn([2, 400], options);
    let tokens = {
        let config = tiny::speech_v2();
        let wave: WaveEncoder = encoder(&config.features, &config.transformer);
        let batch = Batch::new(samples.shallow_clone()).expect("samples");
        wave.embed(&batch, false).expect("tokens").num_tokens() as usize
    };
    let (first, last) = train::<WaveEncoder>(tiny::speech_v2(), mask(tokens, &rows(6)), samples);
    assert!(last < 0.8 * first, "speech: {first} to {last}");
    let images = Tensor::randn([2, 3, 32, 32], options);
    let (first, last) = train::<PatchEncoder>(vision::v2(), mask(16, &rows(6)), images);
    assert!(last < 0.8 * first, "images: {first} to {last}");
    let ids = Tensor::randint_low(4, 63, [2, 12], (Kind::Int64, Device::Cpu));
    let (first, last) = train::<TokenEncoder>(text::v2(), mask(12, &rows(6)), ids);
    assert!(last < 0.5 * first, "text: {first} to {last}");
}

#[test]
fn settings_without_a_meaning_are_refused() {
    let error = |change: &dyn Fn(&mut Data2VecConfig<_>)| {
        let mut config = vision::v2();
        config.target = TargetConfig::INPUT;
        change(&mut config);
        let masking = Box::new(FixedMask(mask(16, &[&[1]])));
        match Data2Vec::<PatchEncoder>::new(config, masking, Device::Cpu, 1) {
            Err(Error::Config { key, .. }) => key,
            Err(other) => panic!("{other}"),
            Ok(_) => "none".into(),
        }
    };
    assert_eq!(error(&|_| {}), "loss.cls");
    assert_eq!(error(&|config| config.loss.cls = None), "none");
    let mut config = text::v2();
    config.target = TargetConfig::INPUT;
    config.loss.beta = 1.0;
    let masking = Box::new(FixedMask(mask(12, &[&[1]])));
    let built = Data2Vec::<TokenEncoder>::new(config, masking, Device::Cpu, 1);
    assert!(built.expect_err("ids have no regression").to_string().contains("loss.beta"));
}

#[test]
fn recipes_write_the_keys_that_are_read() {
    let section = |text: &str| toml::from_str::<TargetConfig>(text);
    assert_eq!(section("source = \"input\"").expect("a section"), TargetConfig::INPUT);
    let written = toml::to_string(&TargetConfig::INPUT).expect("a section");
    assert_eq!(written, "source = \"input\"\n");
    let error = section("source = \"input\"\ntop_k = 3").expect_err("an unread key").to_string();
    assert!(error.contains("top_k"), "{error}");
    let error = section("source = \"ffn\"\ntop_k = 3").expect_err("a missing key").to_string();
    assert!(error.contains("layer_norm"), "{error}");
    let default = toml::to_string(&TargetConfig::default()).expect("a section");
    assert_eq!(section(&default).expect("a section"), TargetConfig::default());
}
