//! data2vec 2.0 for text, equal to the reference implementation. Gates: `goldens/README.md`.

use data2vec_core::random::{Purpose, stream};
use data2vec_core::{AdamW, Batch, Data2Vec, Mask, Objective, Tokens};
use data2vec_nlp::TokenEncoder;
use data2vec_tests::parity::{Goldens, fairseq, pytorch, step};
use data2vec_tests::reference::golden;
use data2vec_tests::text::{self, TextV2};
use data2vec_tests::tiny::{self, FixedMask};
use tch::{Device, Tensor};

const HIDDEN: i64 = 81;

struct Text {
    model: Data2Vec<TokenEncoder>,
    batch: Batch,
    mask: Mask,
    goldens: Goldens<TextV2>,
}

/// The reference's weights in our model, its input and its mask.
fn text() -> Text {
    let goldens = Goldens::new("v2_text", TextV2, HIDDEN as f64);
    let mask = goldens.mask();
    let masking = Box::new(FixedMask(mask.clone()));
    let model = Data2Vec::new(text::v2(), masking, Device::Cpu, 1).expect("possible settings");
    goldens.set(model.vars().variables(), "student");
    goldens.set(model.teacher().variables(), "teacher");
    let batch = Batch::new(goldens.forward["input.source"].shallow_clone()).expect("a batch");
    Text { model, batch, mask, goldens }
}

impl Text {
    /// `(B·M, len, 1)`: which tokens the reference's rows from `start` on stand for, in its order of
    /// 11 visible and 9 hidden tokens. It comes from an unstable sort; ours is increasing.
    fn order(&self, start: i64, len: i64) -> Tensor {
        self.goldens.forward["order"].narrow(1, start, len).unsqueeze(-1)
    }

    /// `(B·M, T, D)`: the noise of step `step` at hidden tokens.
    fn noise(&self, step: usize, tokens: &Tokens) -> Tensor {
        let noise = &golden("v2_text.noise")[&format!("noise.{step}")]; // (B·M, N/(B·M), D)
        let order = self.order(11, 9).expand_as(noise);
        tokens.x.zeros_like().scatter(1, &order, noise)
    }

    fn objective(&self, step: usize) -> Objective {
        let tokens = self.model.student().embed(&self.batch, true).expect("known tokens");
        let target = self.model.target(&self.batch, &tokens).expect("known tokens");
        let tokens = tokens.repeat(3);
        let noise = self.noise(step, &tokens);
        let mut rng = stream(1, Purpose::Step, &[]);
        self.model.regress(&tokens, &self.mask, &target, Some(&noise), Some(&mut rng))
    }
}

#[test]
fn intermediate_values() {
    let t = text();
    let encoder = "student.modality_encoders.TEXT";
    let tokens = t.model.student().embed(&t.batch, false).expect("known tokens");
    for name in ["local_encoder", "project_features"] {
        t.goldens.assert_mid(&format!("{encoder}.{name}"), &tokens.x);
    }

    let repeated = tokens.repeat(3);
    let visible = t.mask.visible(repeated.lengths(), Device::Cpu);
    let shown = repeated.with(visible.without_hidden(&repeated.x));
    let increasing = t.order(0, 11).argsort(1, false); // (B·M, K, 1)
    let assert_visible = |name: &str, ours: &Tensor| {
        let theirs = t.goldens.mid(name);
        let theirs = theirs.gather(1, &increasing.expand_as(&theirs), false);
        t.goldens.assert_value(name, ours, &theirs);
    };
    assert_visible(&format!("{encoder}.context_encoder"), &visible.gather(&shown.x));
    let student = t.model.student().contextualize(&shown, Some(&visible), None);
    let teacher = t.model.teacher().layers(&t.batch, &tokens).expect("known tokens");
    assert_eq!((student.layers.len(), teacher.len()), (3, 3));
    for (i, (student, teacher)) in student.layers.iter().zip(&teacher).enumerate() {
        assert_visible(&format!("student.blocks.{i}.0"), &student.out);
        assert_visible(&format!("student.blocks.{i}.1"), &student.ffn);
        t.goldens.assert_mid(&format!("teacher.{i}.0"), &teacher.out);
        t.goldens.assert_mid(&format!("teacher.{i}.1"), &teacher.ffn);
    }
    let features = visible.restore(&student.x, &t.noise(0, &repeated));
    let features = repeated.with(features);
    t.goldens.assert_decoder(&format!("{encoder}.decoder"), &t.model, &features, &t.mask);
    t.goldens.assert_all_mids_seen();
}

#[test]
fn targets_predictions_loss_and_gradients() {
    let t = text();
    let objective = t.objective(0);
    assert_eq!(objective.num_hidden, HIDDEN);
    assert!((objective.masked_share - 0.45).abs() < 1e-12);
    t.goldens.assert_objective(&objective);
    objective.loss.backward();
    t.goldens.assert_gradients(t.model.vars().variables(), HIDDEN);
}

/// A step with the goldens' noise.
fn train(t: &mut Text, optimizer: &mut AdamW, i: usize) -> (f64, f64) {
    let objective = t.objective(i);
    step(&mut t.model, optimizer, &objective, i, 0.5)
}

#[test]
fn five_steps() {
    let mut t = text();
    let mut optimizer = AdamW::new(t.model.vars().variables(), &fairseq(tiny::adamw()));
    let goldens = Goldens::new("v2_text", TextV2, HIDDEN as f64);
    let step = |t: &mut &mut Text, i| train(t, &mut optimizer, i);
    // The reference moves its teacher at the start of the next step.
    goldens.assert_five_steps(&mut t, |t| &t.model, step, 4);
}

#[test]
fn one_step_of_pytorchs_adamw() {
    let mut t = text();
    let mut optimizer = AdamW::new(t.model.vars().variables(), &pytorch(tiny::adamw()));
    train(&mut t, &mut optimizer, 0);
    t.goldens.assert_weights(t.model.vars().variables(), "after_torch_adamw");
}
