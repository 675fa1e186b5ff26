//! data2vec 1.0 for speech matches the reference implementation. Tolerances: see `goldens/README.md`.

use data2vec_core::{AdamWConfig, Batch, Encoder, FeatureEncoder, Mask, Tokens, TrainState};
use data2vec_speech::WaveEncoder;
use data2vec_tests::parity::{Goldens, VALUE_TOLERANCE, fairseq_adam, layer_norm, pytorch_adamw};
use data2vec_tests::reference::SpeechV1;
use data2vec_tests::tiny::{self, FixedMask, regress};
use tch::{Device, Tensor, nn};

const NUM_MASKED: i64 = 26;

struct Speech {
    state: TrainState<WaveEncoder>,
    batch: Batch,
    mask: Mask,
    goldens: Goldens<SpeechV1>,
}

/// Loads the reference's weights, input and mask.
fn speech_v1(optimizer: &AdamWConfig) -> Speech {
    let goldens = Goldens::new("v1_audio", SpeechV1, NUM_MASKED as f64);
    let mask = goldens.mask();
    let model = tiny::model(tiny::speech_v1(), FixedMask(mask.clone()));
    goldens.load_into(model.vars().variables(), "student");
    goldens.load_into(model.teacher().variables(), "teacher");
    let batch = Batch::new(goldens.forward["input.source"].shallow_clone()).expect("a batch");
    Speech { state: tiny::state(model, optimizer), batch, mask, goldens }
}

fn batches(speech: &Speech) -> [Batch; 1] {
    [Batch::new(speech.batch.inputs.shallow_clone()).expect("a batch")]
}

/// Returns the output of the first `layers` positional convolutions of `who`.
fn position_convs(
    goldens: &Goldens<SpeechV1>,
    who: &str,
    layers: usize,
    tokens: &Tokens,
) -> Tensor {
    let mut config = tiny::speech_v1();
    config.features.pos_layers = layers;
    let vars = nn::VarStore::new(Device::Cpu);
    let path = vars.root() / "encoder";
    let encoder = Encoder::<WaveEncoder>::new(&path, &config.features, &config.transformer);
    goldens.load_into(vars.variables(), who);
    encoder.expect("a valid config").features().add_positions(tokens, false).expect("positions")
        - &tokens.x
}

#[test]
fn intermediate_values_match() {
    let s = speech_v1(&fairseq_adam(tiny::adamw()));
    let (model, goldens) = (&s.state.model, &s.goldens);
    let vars = model.vars().variables();
    // (B, L, C), theirs (B, C, L)
    let convs = model.student().features().convolve(&s.batch.inputs, vec![1600; 2]);
    let convs: Vec<Tensor> = convs.map(|(x, _)| x.transpose(1, 2)).collect();
    assert_eq!(convs.len(), 4);
    for (i, conv) in convs.iter().enumerate() {
        goldens.assert_intermediate(&format!("student.feature_extractor.conv_layers.{i}"), conv);
    }
    goldens.assert_intermediate("student.feature_extractor", &convs[3]);
    let norm = layer_norm(&vars, "encoder.features.embed.norm", &convs[3].transpose(1, 2), 1e-5);
    goldens.assert_intermediate("student.layer_norm", &norm);
    let tokens = model.student().embed(&s.batch, false).expect("tokens");
    goldens.assert_intermediate("student.post_extract_proj", &tokens.x);

    let is_masked = s.mask.to_tensor(Device::Cpu).unsqueeze(-1);
    let masked = Tokens::new(vars["mask_token"].where_self(&is_masked, &tokens.x), None);
    for (who, prefix, encoder, vars, tokens) in [
        ("student", "student.encoder", model.student(), vars, &masked),
        ("teacher", "teacher", model.teacher().encoder(), model.teacher().variables(), &tokens),
    ] {
        let position = |layers| position_convs(goldens, who, layers, tokens);
        for i in 0..3 {
            let name = format!("{prefix}.pos_conv.{i}");
            goldens.assert_intermediate(&name, &position(i + 1).transpose(1, 2));
        }
        goldens.assert_intermediate(&format!("{prefix}.pos_conv"), &position(3).transpose(1, 2));
        let x = &tokens.x + position(3);
        let norm = layer_norm(&vars, "encoder.transformer.input_norm", &x, 1e-5);
        goldens.assert_intermediate(&format!("{prefix}.layer_norm"), &norm);

        let layers = encoder.contextualize(tokens, None, None).expect("positions").layers;
        assert_eq!(layers.len(), 4);
        for (i, layer) in layers.iter().enumerate() {
            for (part, ours) in [("0", &layer.out), ("1.1", &layer.ffn)] {
                let name = format!("{prefix}.layers.{i}.{part}");
                // (T, B, D), T padded to even
                let theirs = goldens.intermediate(&name).narrow(0, 0, 39).transpose(0, 1);
                goldens.assert_value(&name, ours, &theirs);
            }
        }
    }
    let target = model.target(&s.batch, &tokens).expect("tokens");
    let objective = regress(model, &tokens, &s.mask, &target, None, None);
    goldens.assert_intermediate("student.final_proj", &objective.prediction);
    goldens.assert_all_intermediates_compared();
}

#[test]
fn targets_predictions_loss_and_gradients_match() {
    let s = speech_v1(&fairseq_adam(tiny::adamw()));
    let tokens = s.state.model.student().embed(&s.batch, true).expect("tokens");
    let target = s.state.model.target(&s.batch, &tokens).expect("tokens");
    let objective = regress(&s.state.model, &tokens, &s.mask, &target, None, None);
    assert_eq!(objective.num_masked, NUM_MASKED);
    s.goldens.assert_objective(&objective);
    objective.loss.backward();
    s.goldens.assert_gradients(s.state.model.vars().variables(), NUM_MASKED);
}

#[test]
fn five_steps_match() {
    let s = speech_v1(&fairseq_adam(tiny::adamw()));
    let batches = batches(&s);
    let step = |state: &mut TrainState<WaveEncoder>, i| {
        let report = state.step(&batches).expect("a step");
        if i == 0 {
            assert!((report.target_std - 0.552_526).abs() < VALUE_TOLERANCE);
            assert!((report.pred_std - 0.378_614).abs() < VALUE_TOLERANCE);
        }
        (report.loss, report.grad_norm)
    };
    // The reference updates its teacher at the start of the next step.
    s.goldens.assert_five_steps(s.state, |state| &state.model, step, 4);
}

#[test]
fn one_pytorch_adamw_step_matches() {
    let mut s = speech_v1(&pytorch_adamw(tiny::adamw()));
    s.state.step(&batches(&s)).expect("a step");
    s.goldens.assert_weights(s.state.model.vars().variables(), "after_torch_adamw");
}
