//! Properties of the image encoder; equality with the references is tested elsewhere.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;

use data2vec_core::io::checkpoint::assign;
use data2vec_core::{
    Batch, Data2Vec, Data2VecConfig, DecoderConfig, EmaConfig, EmaScope, Encoder, Error,
    FeatureEncoder, Mask, MaskedInput, ModelConfig, NormPlacement, Precision, RegressionLoss,
    StudentInput, TargetConfig, TargetNorm, TargetSource, TransformerConfig, WeightInit,
};
use data2vec_vision::{
    InverseBlockMask, PatchEncoder, PatchEncoderConfig, Pixels, Positions, VisionEncoder,
    VisionMaskConfig,
};
use ndarray::Array2;
use tch::{Device, Kind, Tensor, nn};

fn transformer() -> TransformerConfig {
    TransformerConfig {
        norm_eps: 1e-6,
        input_norm: true,
        ..TransformerConfig::without_dropout(16, 2, 4, 32)
    }
}

fn features(positions: Positions) -> PatchEncoderConfig {
    PatchEncoderConfig {
        image_size: [12, 16],
        channels: 2,
        mean: vec![0.5; 2],
        std: vec![0.5; 2],
        patch_size: 4,
        positions,
    }
}

fn config(positions: Positions, masked_input: MaskedInput) -> Data2VecConfig<PatchEncoderConfig> {
    let copies = if masked_input == MaskedInput::Drop { 2 } else { 1 };
    Data2VecConfig {
        model: ModelConfig {
            masked_input,
            copies,
            noise_std: 0.01,
            precision: Precision::F32,
            activation_checkpointing: false,
            compat: vec![],
        },
        features: features(positions),
        transformer: transformer(),
        target: TargetConfig {
            top_k: 2,
            source: TargetSource::Ffn,
            layer_norm: TargetNorm::Instance,
            target_norm: TargetNorm::Layer,
        },
        loss: RegressionLoss { beta: 0.0, scale: None, cls: Some(1.0) },
        decoder: DecoderConfig::Conv2d {
            dim: 8,
            kernel: 4, // even kernels must keep the size too
            groups: 2,
            layers: 2,
            residual: true,
            input_dropout: 0.0,
        },
        ema: EmaConfig { scope: EmaScope::Everything, decay: 0.9, end_decay: 0.9, anneal_steps: 0 },
    }
}

fn masking() -> VisionMaskConfig {
    VisionMaskConfig::InverseBlocks(InverseBlockMask { probability: 0.6, length: 2, adjust: 0.1 })
}

fn model(positions: Positions, masked_input: MaskedInput) -> Data2Vec<PatchEncoder> {
    let masking = Box::new(masking().on_grid([3, 4]).unwrap());
    let model = Data2Vec::new(config(positions, masked_input), masking, Device::Cpu, 3).unwrap();
    // Relative biases start at zero, which would hide errors.
    for (name, mut var) in model.vars().variables() {
        if name.ends_with("relative_bias") {
            tch::no_grad(|| var.copy_(&var.randn_like()));
        }
    }
    model
}

fn images(rows: i64) -> Tensor {
    Tensor::randn([rows, 2, 12, 16], (Kind::Float, Device::Cpu))
}

/// Masks the second row of the grid in each image.
fn mask(rows: usize) -> Mask {
    Mask::new(Array2::from_shape_fn((rows, 12), |(_, t)| t / 4 == 1)).unwrap()
}

fn max_diff(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn masked_pixels_do_not_reach_student() {
    for positions in [Positions::SinCos, Positions::Relative, Positions::RelativeBlocks] {
        for masked_input in [MaskedInput::Replace, MaskedInput::Drop] {
            let model = model(positions, masked_input);
            let (mask, clean) = (mask(2), images(2));
            let changed = clean.copy();
            let _ = changed.narrow(2, 4, 4).fill_(9.0); // the grid's second row
            let predict = |inputs: &Tensor| {
                let batch = Batch::new(inputs.shallow_clone()).unwrap();
                let tokens = model.student().embed(&batch, false).unwrap();
                let (target, noise) = (tokens.x.zeros_like(), Some(tokens.x.zeros_like()));
                let input = StudentInput { tokens, mask: mask.clone(), target, noise };
                model.student_forward(&input, None).unwrap().prediction
            };
            assert_eq!(max_diff(&predict(&clean), &predict(&changed)), 0.0, "{positions:?}");
            assert!(max_diff(&predict(&clean), &predict(&(&clean + 1.0))) > 1e-4);
        }
    }
}

#[test]
fn dropping_patches_keeps_relative_positions() {
    let model = model(Positions::Relative, MaskedInput::Drop);
    let batch = Batch::new(images(1)).unwrap();
    let tokens = model.student().embed(&batch, false).unwrap();
    let encoder = model.student().features();
    let all = encoder.attention_bias(&tokens, None).remove(0); // (H, 13, 13)
    let kept =
        encoder.attention_bias(&tokens, Some(&Tensor::from_slice(&[2_i64, 7, 8]).unsqueeze(0)));
    let at = Tensor::from_slice(&[0_i64, 3, 8, 9]); // CLS first
    let expected = all.index_select(1, &at).index_select(2, &at);
    assert_eq!(max_diff(&kept[0].squeeze_dim(0), &expected), 0.0);
    // The bias depends on the offset only: (0, 0) to (1, 2) equals (1, 1) to (2, 3).
    let bias = |from: i64, to: i64| all.double_value(&[1, from + 1, to + 1]);
    assert_eq!(bias(0, 6), bias(5, 11));
    assert_ne!(bias(0, 6), bias(6, 0));
}

#[test]
fn finetuning_copies_shared_bias_to_each_block() {
    let encoder = |config: &PatchEncoderConfig| {
        let vars = nn::VarStore::new(Device::Cpu);
        let path = vars.root() / "encoder";
        let encoder = Encoder::<PatchEncoder>::new(&path, config, &transformer()).unwrap();
        (vars, encoder)
    };
    let mut config = features(Positions::Relative);
    let (vars, shared) = encoder(&config);
    let tensors = vars.variables().into_iter();
    let tensors =
        tensors.map(|(name, var)| (name, tch::no_grad(|| var.shallow_clone().normal_(0.0, 0.3))));
    let mut tensors: BTreeMap<String, Tensor> = tensors.collect();
    PatchEncoder::adapt_for_finetuning(&mut config, 2, &mut tensors);
    assert_eq!(config.positions, Positions::RelativeBlocks);

    let (vars, own) = encoder(&config);
    assign(Path::new("here"), &vars.variables(), &tensors).unwrap();
    let batch = Batch::new(images(1)).unwrap();
    let outputs = |encoder: &Encoder<PatchEncoder>| {
        let hidden = encoder.forward(&batch).unwrap();
        hidden.layers.into_iter().map(|layer| layer.out).collect::<Vec<_>>()
    };
    let expected = outputs(&shared);
    assert!(outputs(&own).iter().zip(&expected).all(|(a, b)| max_diff(a, b) == 0.0));
    // The bias of the second block affects only that block.
    let name = "encoder.features.positions.blocks.1.relative_bias";
    let _ = tch::no_grad(|| vars.variables()[name].shallow_clone().normal_(0.0, 1.0));
    let changed = outputs(&own);
    assert_eq!(max_diff(&changed[0], &expected[0]), 0.0);
    assert!(max_diff(&changed[1], &expected[1]) > 1e-3);
}

#[test]
fn accepts_images_of_other_sizes() {
    for positions in [Positions::SinCos, Positions::Relative, Positions::RelativeBlocks] {
        let model = model(positions, MaskedInput::Drop);
        let inputs = Tensor::randn([1, 2, 20, 8], (Kind::Float, Device::Cpu));
        let hidden = model.student().forward(&Batch::new(inputs).unwrap()).unwrap();
        assert_eq!(hidden.x.size(), [1, 10, 16]);
        assert_eq!(hidden.prefix.unwrap().size(), [1, 1, 16]);
        assert!(bool::try_from(hidden.x.isfinite().all()).unwrap());
    }
}

#[test]
fn every_variable_gets_a_gradient() {
    use rand::{SeedableRng, rngs::StdRng};
    for positions in [Positions::SinCos, Positions::Relative, Positions::RelativeBlocks] {
        for masked_input in [MaskedInput::Replace, MaskedInput::Drop] {
            let model = model(positions, masked_input);
            let batch = Batch::new(images(2)).unwrap();
            let objective = model.forward(&batch, &mut StdRng::seed_from_u64(1), true).unwrap();
            // 12 · (1 − 0.6) = 4.8 patches are visible.
            assert_eq!(objective.masked_share, 8.0 / 12.0);
            objective.loss.backward();
            for (name, var) in model.vars().variables() {
                assert!(var.grad().defined(), "{name} of {masked_input:?} has no gradient");
            }
        }
    }
}

#[test]
fn cls_loss_does_not_depend_on_batch_split() {
    let model = model(Positions::SinCos, MaskedInput::Replace);
    let mask_of = |counts: &[usize]| {
        Mask::new(Array2::from_shape_fn((counts.len(), 12), |(row, t)| t < counts[row])).unwrap()
    };
    let all = images(3);
    let sum = |rows: std::ops::Range<i64>, counts: &[usize]| {
        let inputs = all.narrow(0, rows.start, rows.end - rows.start);
        let batch = Batch::new(inputs).unwrap();
        let tokens = model.student().embed(&batch, false).unwrap();
        let target = model.target(&batch, &tokens).unwrap();
        let input = StudentInput { tokens, mask: mask_of(counts), target, noise: None };
        model.student_forward(&input, None).unwrap().loss.double_value(&[])
    };
    let (whole, parts) = (sum(0..3, &[3, 7, 5]), sum(0..1, &[3]) + sum(1..3, &[7, 5]));
    assert!((whole / parts - 1.0).abs() < 1e-5, "{whole}, {parts}");
}

#[test]
fn rejects_mismatched_batch() {
    let model = model(Positions::SinCos, MaskedInput::Drop);
    let float = (Kind::Float, Device::Cpu);
    for inputs in [
        Tensor::zeros([2, 12], float),
        Tensor::zeros([2, 3, 12, 16], float),
        Tensor::zeros([2, 2, 13, 16], float),
        Tensor::zeros([2, 2, 12, 16], (Kind::Int64, Device::Cpu)),
    ] {
        let error = model.student().forward(&Batch::new(inputs).unwrap()).unwrap_err();
        assert!(matches!(error, Error::Input(_)), "{error}");
    }
}

#[test]
fn rejects_invalid_config() {
    let change = |change: fn(&mut PatchEncoderConfig, &mut TransformerConfig)| {
        let (mut features, mut transformer) = (features(Positions::SinCos), transformer());
        change(&mut features, &mut transformer);
        PatchEncoder::validate(&features, &transformer)
    };
    assert!(change(|_, _| ()).is_ok());
    for (result, expected) in [
        (change(|f, _| f.patch_size = 0), "features.patch_size"),
        (change(|f, _| f.image_size = [12, 15]), "features.image_size"),
        (change(|f, _| f.image_size = [-4, 16]), "features.image_size"),
        (change(|f, _| f.image_size = [1 << 60, 16]), "features.image_size"),
        (change(|f, _| f.channels = 0), "features.channels"),
        (change(|f, _| f.mean = vec![0.5]), "features.mean"),
        (change(|f, _| f.std = vec![1.0, 0.0]), "features.std"),
        (change(|_, t| t.dim = 18), "features.positions"),
    ] {
        assert!(matches!(&result, Err(Error::Config { key, .. }) if key == expected), "{result:?}");
    }
}

#[test]
fn beit_init_has_published_std() {
    let mut transformer = transformer();
    (transformer.init, transformer.dim, transformer.layer_scale) =
        (WeightInit::Beit, 64, Some(0.1));
    let vars = nn::VarStore::new(Device::Cpu);
    Encoder::<PatchEncoder>::new(&vars.root(), &features(Positions::Relative), &transformer)
        .unwrap();
    let vars = vars.variables();
    let max_and_std = |name: &str| {
        let most = vars[name].abs().max().double_value(&[]);
        (most, vars[name].std(true).double_value(&[]))
    };
    // A normal distribution truncated at one std has 0.54 of its std.
    for (name, factor) in [
        ("features.embed.proj.weight", 1.0),
        ("transformer.blocks.0.attn.qkv.weight", 1.0),
        ("transformer.blocks.1.mlp.fc1.weight", 1.0),
        ("transformer.blocks.0.attn.proj.weight", 0.5_f64.sqrt()),
        ("transformer.blocks.1.mlp.fc2.weight", 0.5),
    ] {
        let (most, std) = max_and_std(name);
        assert!(most <= 0.02 * factor + 1e-7 && most > 0.019 * factor, "{name}: {most}");
        assert!((std / (0.02 * 0.5396 * factor) - 1.0).abs() < 0.1, "{name}: {std}");
    }
    assert_eq!(max_and_std("transformer.blocks.0.attn.qkv.bias").0, 0.0);
    assert_eq!(max_and_std("features.positions.relative_bias").0, 0.0);
}

/// Exports a random encoder of RGB images and loads it.
fn exported() -> VisionEncoder {
    let mut config = config(Positions::SinCos, MaskedInput::Drop);
    config.features.channels = 3;
    (config.features.mean, config.features.std) = (vec![0.5; 3], vec![0.5; 3]);
    let masking = Box::new(masking().on_grid([3, 4]).unwrap());
    let model = Data2Vec::<PatchEncoder>::new(config, masking, Device::Cpu, 3).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.export(dir.path()).unwrap();
    VisionEncoder::load(dir.path(), Device::Cpu).unwrap()
}

/// Returns an RGB and a grayscale image of different sizes.
fn two_images() -> [Pixels; 2] {
    let rgb = Pixels::new(20, 9, 3, (0..540).map(|i| (i % 251) as u8).collect()).unwrap();
    [rgb, Pixels::new(1, 1, 1, vec![7]).unwrap()]
}

#[test]
fn exported_encoder_computes_features_and_embeddings() {
    let (encoder, images) = (exported(), two_images());
    let features = encoder.features(&images[0]).unwrap();
    assert_eq!((features.dim(), encoder.depth(), encoder.dim()), ((12, 16), 2, 16));
    assert_eq!(encoder.layers(&images[0]).unwrap().last(), Some(&features));
    let embedded = encoder.embed(&images).unwrap();
    let mean = features.mean_axis(ndarray::Axis(0)).unwrap();
    let diff = (&embedded.row(0) - &mean).iter().fold(0.0_f32, |max, d| max.max(d.abs()));
    assert!(diff < 1e-5, "{diff}");
    assert!(encoder.embed(&[]).is_err());
}

#[test]
fn features_batch_matches_single_calls() {
    let (encoder, images) = (exported(), two_images());
    let batch = encoder.features_batch(&images).unwrap();
    assert_eq!(batch.len(), images.len());
    for (image, features) in images.iter().zip(batch) {
        let single = encoder.features(image).unwrap();
        assert_eq!(features.dim(), single.dim());
        let diff = (features - single).iter().fold(0.0_f32, |max, d| max.max(d.abs()));
        assert!(diff < 1e-5, "{diff}");
    }
    assert!(encoder.features_batch(&[]).unwrap().is_empty());
}

#[test]
fn parameter_counts_match_published_models() {
    // Extrapolates to full depth from two shallow models, since all blocks have the same size.
    let count = |dim, heads, patch_size, depth: i64, version: u8, decoder: &DecoderConfig| {
        let at = |depth| {
            let mut t = transformer();
            (t.dim, t.heads, t.depth, t.mlp_ratio) = (dim, heads, depth, 4.0);
            let mut config = config(Positions::SinCos, MaskedInput::Drop);
            if version == 1 {
                (t.norm, t.input_norm) = (NormPlacement::Pre, false);
                (t.init, t.layer_scale) = (WeightInit::Beit, Some(1e-4));
                config.features.positions = Positions::Relative;
                config.model.masked_input = MaskedInput::Replace;
                config.loss.cls = None;
            }
            config.features = PatchEncoderConfig {
                image_size: [224; 2],
                channels: 3,
                mean: vec![0.0; 3],
                std: vec![1.0; 3],
                patch_size,
                positions: config.features.positions,
            };
            config.target.top_k = 1;
            (config.transformer, config.decoder) = (t, decoder.clone());
            let masking = Box::new(masking().on_grid(config.features.grid()).unwrap());
            let model = Data2Vec::<PatchEncoder>::new(config, masking, Device::Cpu, 1).unwrap();
            let (all, encoder) = model.parameters();
            [encoder as i64, all as i64]
        };
        let (one, two) = (at(1), at(2));
        [0, 1].map(|i| one[i] + (depth - 1) * (two[i] - one[i]))
    };
    let conv = |dim, kernel, layers| DecoderConfig::Conv2d {
        dim,
        kernel,
        groups: 16,
        layers,
        residual: true,
        input_dropout: 0.0,
    };
    assert_eq!(count(768, 12, 16, 12, 2, &conv(768, 3, 6)), [85_647_360, 88_233_216]);
    assert_eq!(count(1024, 16, 16, 24, 2, &conv(1024, 5, 3)), [303_099_904, 309_067_776]);
    assert_eq!(count(1280, 16, 14, 32, 2, &conv(1280, 5, 3))[0], 630_435_840);
    assert_eq!(count(1280, 16, 14, 32, 2, &conv(1024, 5, 3))[1], 637_075_712);
    let linear = DecoderConfig::Mlp { layers: 1, norm_eps: Some(1e-6) };
    // BEiT's attention has no key bias.
    assert_eq!(count(768, 12, 16, 12, 1, &linear)[1] - 12 * 768, 86_256_720);
    assert_eq!(count(1024, 16, 16, 24, 1, &linear)[1] - 24 * 1024, 304_186_816);
}
