//! Equal to the reference implementation, number by number. Gates: `goldens/README.md`.

use std::collections::HashMap;

use data2vec_core::optim::OptimizerCompat;
use data2vec_core::{AdamWConfig, Batch, Mask, Tokens, TrainState};
use data2vec_speech::WaveEncoder;
use data2vec_tests::reference::{Tensors, golden, speech_v1_tensor};
use data2vec_tests::tiny::{self, FixedMask, difference};
use ndarray::Array2;
use tch::{Kind, Tensor};

const VALUES: f64 = 2e-5;
const WEIGHTS: f64 = 5e-5;
const HIDDEN: f64 = 26.0;

struct Speech {
    state: TrainState<WaveEncoder>,
    batch: Batch,
    mask: Mask,
    forward: Tensors,
}

/// The reference's weights in our model, its input and its mask.
fn speech_v1(optimizer: &AdamWConfig) -> Speech {
    let (weights, forward) = (golden("v1_audio.weights"), golden("v1_audio.forward"));
    let size = forward["mask"].size();
    let hidden: Vec<i64> = forward["mask"].to_kind(Kind::Int64).flatten(0, -1).iter_i64();
    let hidden = hidden.iter().map(|&h| h != 0).collect();
    let hidden = Array2::from_shape_vec((size[0] as usize, size[1] as usize), hidden);
    let mask = Mask::new(hidden.expect("a mask of that shape")).expect("something hidden");
    let model = tiny::model(tiny::speech_v1(), FixedMask(mask.clone()));
    let set = |vars: HashMap<String, Tensor>, prefix: &str| {
        tch::no_grad(|| {
            let mut used = 0;
            for (name, mut var) in vars {
                if let Some(value) = speech_v1_tensor(&weights, prefix, &name) {
                    var.copy_(&value);
                    used += 1;
                }
            }
            used
        })
    };
    // Everything but the teacher's unused copy of the feature encoder comes from the reference.
    let all = model.vars().variables().len();
    assert_eq!(set(model.vars().variables(), "student"), all);
    let averaged = model.teacher().variables();
    let embed = averaged.keys().filter(|n| n.contains(".embed.")).count();
    assert_eq!(set(model.teacher().variables(), "teacher"), averaged.len() - embed);
    let batch = Batch::new(forward["input.source"].shallow_clone()).expect("a batch");
    Speech { state: tiny::state(model, optimizer), batch, mask, forward }
}

trait Values {
    fn iter_i64(&self) -> Vec<i64>;
}

impl Values for Tensor {
    fn iter_i64(&self) -> Vec<i64> {
        Vec::<i64>::try_from(self).expect("a flat tensor of integers")
    }
}

fn fairseq_adam() -> AdamWConfig {
    let compat = vec![OptimizerCompat::FairseqEpsilon, OptimizerCompat::DecayEverything];
    AdamWConfig { compat, ..tiny::adamw() }
}

fn batches(speech: &Speech) -> [Batch; 1] {
    [Batch::new(speech.batch.inputs.shallow_clone()).expect("a batch")]
}

/// `(T, B, D)`, T padded to even, to `(B, T, D)`.
fn batch_first(x: &Tensor, len: i64) -> Tensor {
    x.narrow(0, 0, len).transpose(0, 1)
}

#[test]
fn intermediate_values() {
    let s = speech_v1(&fairseq_adam());
    let (student, teacher) = (s.state.model.student(), s.state.model.teacher().encoder());
    let tokens = student.embed(&s.batch, false).expect("long enough");
    let expect = |name: &str| &s.forward[&format!("mid.{name}")];
    assert!(difference(&tokens.x, expect("student.post_extract_proj")) < VALUES);

    let hidden = s.mask.to_tensor(tch::Device::Cpu).unsqueeze(-1);
    let mask_token = s.state.model.vars().variables()["mask_token"].shallow_clone();
    let masked = Tokens::new(mask_token.where_self(&hidden, &tokens.x), None);
    for (who, encoder, tokens) in [("student", student, &masked), ("teacher", teacher, &tokens)] {
        let prefix = if who == "student" { "student.encoder" } else { "teacher" };
        let layers = encoder.contextualize(tokens, None, None).layers;
        assert_eq!(layers.len(), 4);
        for (i, layer) in layers.iter().enumerate() {
            let out = batch_first(expect(&format!("{prefix}.layers.{i}.0")), 39);
            assert!(difference(&layer.out, &out) < VALUES, "{who} block {i}");
            let ffn = batch_first(expect(&format!("{prefix}.layers.{i}.1.1")), 39);
            assert!(difference(&layer.ffn, &ffn) < VALUES, "{who} block {i}, MLP");
        }
    }
}

#[test]
fn targets_predictions_loss_and_gradients() {
    let s = speech_v1(&fairseq_adam());
    let tokens = s.state.model.student().embed(&s.batch, true).expect("long enough");
    let target = s.state.model.target(&s.batch, &tokens).expect("long enough");
    let objective = s.state.model.regress(&tokens, &s.mask, &target, None, None);
    assert!(difference(&objective.target, &s.forward["target.regression"]) < VALUES);
    assert!(difference(&objective.prediction, &s.forward["pred.regression"]) < VALUES);
    let (loss, expected) =
        (objective.loss.double_value(&[]), s.forward["loss.sum"].double_value(&[]));
    assert!((loss / expected - 1.0).abs() < 1e-5, "{loss} is not {expected}");
    assert_eq!(objective.num_hidden as f64, HIDDEN);

    objective.loss.backward();
    let grads = golden("v1_audio.grads");
    for (name, var) in s.state.model.vars().variables() {
        let expected = speech_v1_tensor(&grads, "grad", &name).expect("a gradient for each");
        let gate = 1e-5 + 1e-4 * expected.abs().max().double_value(&[]);
        assert!(difference(&(var.grad() / HIDDEN), &expected) < gate, "gradient of {name}");
    }
}

#[track_caller]
fn assert_weights(vars: HashMap<String, Tensor>, expected: &Tensors, prefix: &str) {
    let mut compared = 0;
    for (name, var) in vars {
        if let Some(expected) = speech_v1_tensor(expected, prefix, &name) {
            let difference = difference(&var, &expected);
            assert!(difference < WEIGHTS, "{prefix} {name} is off by {difference}");
            compared += 1;
        }
    }
    assert!(compared > 50, "only {compared} variables were compared");
}

#[test]
fn five_steps() {
    let mut s = speech_v1(&fairseq_adam());
    let (after, last) = (golden("v1_audio.after"), golden("v1_audio.final"));
    for step in 0..5 {
        let report = s.state.step(&batches(&s)).expect("a step");
        let at = [step];
        let loss = s.forward["traj.loss"].double_value(&at) / HIDDEN;
        assert!((report.loss / loss - 1.0).abs() < 1e-4, "loss {} is not {loss}", report.loss);
        let norm = s.forward["traj.grad_norm"].double_value(&at);
        assert!((report.grad_norm / norm - 1.0).abs() < 1e-4, "{} is not {norm}", report.grad_norm);
        let model = &s.state.model;
        if step == 0 {
            assert!((report.target_var - 0.552_526).abs() < VALUES);
            assert!((report.pred_var - 0.378_614).abs() < VALUES);
            assert_weights(model.vars().variables(), &after, "after_student");
            assert_weights(model.teacher().variables(), &after, "after_teacher");
        }
        // The reference moves its teacher at the start of the next step: four times in five steps.
        if step == 3 {
            assert_weights(model.teacher().variables(), &last, "final_teacher");
        }
    }
    assert_weights(s.state.model.vars().variables(), &last, "final_student");
}

#[test]
fn one_step_of_pytorchs_adamw() {
    let decay = AdamWConfig { compat: vec![OptimizerCompat::DecayEverything], ..tiny::adamw() };
    let mut s = speech_v1(&decay);
    s.state.step(&batches(&s)).expect("a step");
    let expected = golden("v1_audio.torch");
    assert_weights(s.state.model.vars().variables(), &expected, "after_torch_adamw");
}
