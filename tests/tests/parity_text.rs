//! data2vec 2.0 for text, equal to the reference implementation. Gates: `goldens/README.md`.

use std::collections::HashMap;

use data2vec_core::optim::OptimizerCompat;
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{AdamW, AdamWConfig, Batch, Data2Vec, Mask, Objective};
use data2vec_nlp::TokenEncoder;
use data2vec_tests::reference::{Tensors, golden};
use data2vec_tests::text::{self, v2_tensor};
use data2vec_tests::tiny::{self, FixedMask, difference};
use ndarray::Array2;
use tch::{Device, Kind, Tensor};

const VALUES: f64 = 2e-5;
const WEIGHTS: f64 = 5e-5;
const HIDDEN: f64 = 81.0;

struct Text {
    model: Data2Vec<TokenEncoder>,
    batch: Batch,
    mask: Mask,
    forward: Tensors,
}

/// The reference's weights in our model, its input and its mask.
fn text() -> Text {
    let (weights, forward) = (golden("v2_text.weights"), golden("v2_text.forward"));
    let size = forward["mask"].size();
    let hidden = Vec::<i64>::try_from(forward["mask"].to_kind(Kind::Int64).flatten(0, -1));
    let hidden = hidden.expect("integers").into_iter().map(|h| h != 0).collect();
    let hidden = Array2::from_shape_vec((size[0] as usize, size[1] as usize), hidden);
    let mask = Mask::new(hidden.expect("a mask of that shape")).expect("something hidden");
    let masking = Box::new(FixedMask(mask.clone()));
    let model = Data2Vec::new(text::v2(), masking, Device::Cpu, 1).expect("possible settings");
    let set = |vars: HashMap<String, Tensor>, prefix: &str| {
        let mut used = 0;
        for (name, mut var) in vars {
            if let Some(value) = v2_tensor(&weights, prefix, &name) {
                tch::no_grad(|| var.copy_(&value));
                used += 1;
            }
        }
        used
    };
    assert_eq!(set(model.vars().variables(), "student"), model.vars().variables().len());
    // Embedding, positions and their norm are the student's own.
    let averaged = model.teacher().variables();
    assert_eq!(set(model.teacher().variables(), "teacher"), averaged.len() - 4);
    let batch = Batch::new(forward["input.source"].shallow_clone()).expect("a batch");
    Text { model, batch, mask, forward }
}

impl Text {
    /// `(B·M, len, 1)`: which tokens the reference's rows from `start` on stand for, in its order of
    /// 11 visible and 9 hidden tokens. It comes from an unstable sort; ours is increasing.
    fn order(&self, start: i64, len: i64) -> Tensor {
        self.forward["order"].narrow(1, start, len).unsqueeze(-1)
    }

    fn objective(&self, step: usize) -> Objective {
        let tokens = self.model.student().embed(&self.batch, true).expect("known tokens");
        let target = self.model.target(&self.batch, &tokens).expect("known tokens");
        let tokens = tokens.repeat(3);
        let noise = &golden("v2_text.noise")[&format!("noise.{step}")]; // (B·M, N/(B·M), D)
        let order = self.order(11, 9).expand_as(noise);
        let noise = tokens.x.zeros_like().scatter(1, &order, noise); // (B·M, T, D)
        let mut rng = stream(1, Purpose::Step, &[]);
        self.model.regress(&tokens, &self.mask, &target, Some(&noise), Some(&mut rng))
    }
}

#[test]
fn intermediate_values() {
    let t = text();
    let expect = |name: &str| &t.forward[&format!("mid.{name}")];
    let tokens = t.model.student().embed(&t.batch, false).expect("known tokens");
    let local = expect("student.modality_encoders.TEXT.local_encoder");
    assert!(difference(&tokens.x, local) < VALUES);

    let repeated = tokens.repeat(3);
    let visible = t.mask.visible(repeated.lengths(), Device::Cpu);
    let shown = repeated.with(visible.without_hidden(&repeated.x));
    let student = t.model.student().contextualize(&shown, Some(&visible), None).layers;
    let teacher = t.model.teacher().layers(&t.batch, &tokens).expect("known tokens");
    let increasing = t.order(0, 11).argsort(1, false); // (B·M, K, 1)
    for i in 0..3 {
        for (which, student, teacher) in
            [(0, &student[i].out, &teacher[i].out), (1, &student[i].ffn, &teacher[i].ffn)]
        {
            let expected = expect(&format!("student.blocks.{i}.{which}"));
            let expected = expected.gather(1, &increasing.expand_as(expected), false);
            assert!(difference(student, &expected) < VALUES, "student block {i}");
            let expected = expect(&format!("teacher.{i}.{which}"));
            assert!(difference(teacher, expected) < VALUES, "teacher block {i}");
        }
    }
}

#[test]
fn targets_predictions_loss_and_gradients() {
    let t = text();
    let objective = t.objective(0);
    assert_eq!(objective.num_hidden as f64, HIDDEN);
    assert!((objective.masked_share - 0.45).abs() < 1e-12);
    assert!(difference(&objective.target, &t.forward["target.regression"]) < VALUES);
    assert!(difference(&objective.prediction, &t.forward["pred.regression"]) < VALUES);
    let decoded = &t.forward["mid.student.modality_encoders.TEXT.decoder"];
    assert!(difference(&objective.prediction, &t.mask.gather(decoded, 1)) < VALUES);
    let (loss, expected) =
        (objective.loss.double_value(&[]), t.forward["loss.sum"].double_value(&[]));
    assert!((loss / expected - 1.0).abs() < 1e-5, "{loss} is not {expected}");

    objective.loss.backward();
    let grads = golden("v2_text.grads");
    for (name, var) in t.model.vars().variables() {
        let expected = v2_tensor(&grads, "grad", &name).expect("a gradient for each");
        let gate = 1e-5 + 1e-4 * expected.abs().max().double_value(&[]);
        assert!(difference(&(var.grad() / HIDDEN), &expected) < gate, "gradient of {name}");
    }
}

#[track_caller]
fn assert_weights(vars: HashMap<String, Tensor>, expected: &Tensors, prefix: &str) {
    let mut compared = 0;
    for (name, var) in vars {
        if let Some(expected) = v2_tensor(expected, prefix, &name) {
            let difference = difference(&var, &expected);
            assert!(difference < WEIGHTS, "{prefix} {name} is off by {difference}");
            compared += 1;
        }
    }
    assert!(compared >= 36, "only {compared} variables were compared");
}

/// One step with the goldens' noise; its loss for each hidden token and the gradient's norm.
fn step(t: &mut Text, optimizer: &mut AdamW, step: usize) -> (f64, f64) {
    optimizer.zero_grad();
    let objective = t.objective(step);
    objective.loss.backward();
    let norm = optimizer.step(step as u64 + 1, 1e-3, HIDDEN, Some(0.5)).expect("a step");
    t.model.update_teacher(step as u64 + 1).expect("a step");
    (objective.loss.double_value(&[]) / HIDDEN, norm)
}

#[test]
fn five_steps() {
    let mut t = text();
    let compat = vec![OptimizerCompat::FairseqEpsilon, OptimizerCompat::DecayEverything];
    let adam = AdamWConfig { compat, ..tiny::adamw() };
    let mut optimizer = AdamW::new(t.model.vars().variables(), &adam);
    let (after, last) = (golden("v2_text.after"), golden("v2_text.final"));
    for i in 0..5 {
        let (loss, norm) = step(&mut t, &mut optimizer, i);
        let at = [i as i64];
        let expected = t.forward["traj.loss"].double_value(&at) / HIDDEN;
        assert!((loss / expected - 1.0).abs() < 1e-4, "loss {loss} is not {expected}");
        let expected = t.forward["traj.grad_norm"].double_value(&at);
        assert!((norm / expected - 1.0).abs() < 1e-4, "gradient norm {norm} is not {expected}");
        if i == 0 {
            assert_weights(t.model.vars().variables(), &after, "after_student");
            assert_weights(t.model.teacher().variables(), &after, "after_teacher");
        }
        // The reference moves its teacher at the start of the next step: four times in five steps.
        if i == 3 {
            assert_weights(t.model.teacher().variables(), &last, "final_teacher");
        }
    }
    assert_weights(t.model.vars().variables(), &last, "final_student");
}

#[test]
fn one_step_of_pytorchs_adamw() {
    let mut t = text();
    let compat = vec![OptimizerCompat::DecayEverything];
    let adam = AdamWConfig { compat, ..tiny::adamw() };
    let mut optimizer = AdamW::new(t.model.vars().variables(), &adam);
    step(&mut t, &mut optimizer, 0);
    let expected = golden("v2_text.torch");
    assert_weights(t.model.vars().variables(), &expected, "after_torch_adamw");
}
