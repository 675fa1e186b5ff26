//! data2vec 1.0 for speech, equal to the reference implementation. Gates: `goldens/README.md`.

use data2vec_core::{AdamWConfig, Batch, Encoder, Mask, Tokens, TrainState};
use data2vec_speech::WaveEncoder;
use data2vec_tests::parity::{Goldens, VALUES, fairseq, normed, pytorch};
use data2vec_tests::reference::SpeechV1;
use data2vec_tests::tiny::{self, FixedMask};
use tch::{Device, Tensor, nn};

const HIDDEN: i64 = 26;

struct Speech {
    state: TrainState<WaveEncoder>,
    batch: Batch,
    mask: Mask,
    goldens: Goldens<SpeechV1>,
}

/// The reference's weights in our model, its input and its mask.
fn speech_v1(optimizer: &AdamWConfig) -> Speech {
    let goldens = Goldens::new("v1_audio", SpeechV1, HIDDEN as f64);
    let mask = goldens.mask();
    let model = tiny::model(tiny::speech_v1(), FixedMask(mask.clone()));
    goldens.set(model.vars().variables(), "student");
    goldens.set(model.teacher().variables(), "teacher");
    let batch = Batch::new(goldens.forward["input.source"].shallow_clone()).expect("a batch");
    Speech { state: tiny::state(model, optimizer), batch, mask, goldens }
}

fn batches(speech: &Speech) -> [Batch; 1] {
    [Batch::new(speech.batch.inputs.shallow_clone()).expect("a batch")]
}

/// What the first `layers` positional convolutions of `who` make of the tokens.
fn positions(goldens: &Goldens<SpeechV1>, who: &str, layers: usize, tokens: &Tokens) -> Tensor {
    let mut config = tiny::speech_v1();
    config.features.pos_layers = layers;
    let vars = nn::VarStore::new(Device::Cpu);
    let path = vars.root() / "encoder";
    let encoder = Encoder::<WaveEncoder>::new(&path, &config.features, &config.transformer);
    goldens.set(vars.variables(), who);
    use data2vec_core::FeatureEncoder;
    encoder.expect("possible settings").features().add_positions(tokens, false) - &tokens.x
}

#[test]
fn intermediate_values() {
    let s = speech_v1(&fairseq(tiny::adamw()));
    let (model, goldens) = (&s.state.model, &s.goldens);
    let vars = model.vars().variables();
    // (B, L, C), theirs (B, C, L)
    let convs = model.student().features().convolve(&s.batch.inputs, vec![1600; 2]);
    let convs: Vec<Tensor> = convs.map(|(x, _)| x.transpose(1, 2)).collect();
    assert_eq!(convs.len(), 4);
    for (i, conv) in convs.iter().enumerate() {
        goldens.assert_mid(&format!("student.feature_extractor.conv_layers.{i}"), conv);
    }
    goldens.assert_mid("student.feature_extractor", &convs[3]);
    let norm = normed(&vars, "encoder.features.embed.norm", &convs[3].transpose(1, 2), 1e-5);
    goldens.assert_mid("student.layer_norm", &norm);
    let tokens = model.student().embed(&s.batch, false).expect("long enough");
    goldens.assert_mid("student.post_extract_proj", &tokens.x);

    let hidden = s.mask.to_tensor(Device::Cpu).unsqueeze(-1);
    let masked = Tokens::new(vars["mask_token"].where_self(&hidden, &tokens.x), None);
    for (who, prefix, encoder, vars, tokens) in [
        ("student", "student.encoder", model.student(), vars, &masked),
        ("teacher", "teacher", model.teacher().encoder(), model.teacher().variables(), &tokens),
    ] {
        let position = |layers| positions(goldens, who, layers, tokens);
        for i in 0..3 {
            let name = format!("{prefix}.pos_conv.{i}");
            goldens.assert_mid(&name, &position(i + 1).transpose(1, 2));
        }
        goldens.assert_mid(&format!("{prefix}.pos_conv"), &position(3).transpose(1, 2));
        let x = &tokens.x + position(3);
        let norm = normed(&vars, "encoder.transformer.input_norm", &x, 1e-5);
        goldens.assert_mid(&format!("{prefix}.layer_norm"), &norm);

        let layers = encoder.contextualize(tokens, None, None).layers;
        assert_eq!(layers.len(), 4);
        for (i, layer) in layers.iter().enumerate() {
            for (part, ours) in [("0", &layer.out), ("1.1", &layer.ffn)] {
                let name = format!("{prefix}.layers.{i}.{part}");
                // (T, B, D), T padded to even
                let theirs = goldens.mid(&name).narrow(0, 0, 39).transpose(0, 1);
                goldens.assert_value(&name, ours, &theirs);
            }
        }
    }
    let target = model.target(&s.batch, &tokens).expect("long enough");
    let objective = model.regress(&tokens, &s.mask, &target, None, None);
    goldens.assert_mid("student.final_proj", &objective.prediction);
    goldens.assert_all_mids_seen();
}

#[test]
fn targets_predictions_loss_and_gradients() {
    let s = speech_v1(&fairseq(tiny::adamw()));
    let tokens = s.state.model.student().embed(&s.batch, true).expect("long enough");
    let target = s.state.model.target(&s.batch, &tokens).expect("long enough");
    let objective = s.state.model.regress(&tokens, &s.mask, &target, None, None);
    assert_eq!(objective.num_hidden, HIDDEN);
    s.goldens.assert_objective(&objective);
    objective.loss.backward();
    s.goldens.assert_gradients(s.state.model.vars().variables(), HIDDEN);
}

#[test]
fn five_steps() {
    let s = speech_v1(&fairseq(tiny::adamw()));
    let batches = batches(&s);
    let step = |state: &mut TrainState<WaveEncoder>, i| {
        let report = state.step(&batches).expect("a step");
        if i == 0 {
            assert!((report.target_var - 0.552_526).abs() < VALUES);
            assert!((report.pred_var - 0.378_614).abs() < VALUES);
        }
        (report.loss, report.grad_norm)
    };
    // The reference moves its teacher at the start of the next step.
    s.goldens.assert_five_steps(s.state, |state| &state.model, step, 4);
}

#[test]
fn one_step_of_pytorchs_adamw() {
    let mut s = speech_v1(&pytorch(tiny::adamw()));
    s.state.step(&batches(&s)).expect("a step");
    s.goldens.assert_weights(s.state.model.vars().variables(), "after_torch_adamw");
}
