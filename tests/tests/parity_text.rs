//! data2vec 2.0 for text matches the reference implementation. Tolerances: see `goldens/README.md`.

use data2vec_core::random::{Purpose, stream};
use data2vec_core::{AdamW, Batch, Data2Vec, Mask, Objective, Tokens};
use data2vec_nlp::TokenEncoder;
use data2vec_tests::parity::{Goldens, fairseq_adam, pytorch_adamw, step};
use data2vec_tests::reference::golden;
use data2vec_tests::text::{self, TextV2};
use data2vec_tests::tiny::{self, FixedMask, regress};
use tch::{Device, Tensor};

const NUM_MASKED: i64 = 81;

struct Text {
    model: Data2Vec<TokenEncoder>,
    batch: Batch,
    mask: Mask,
    goldens: Goldens<TextV2>,
}

/// Loads the reference's weights, input and mask.
fn text() -> Text {
    let goldens = Goldens::new("v2_text", TextV2, NUM_MASKED as f64);
    let mask = goldens.mask();
    let masking = Box::new(FixedMask(mask.clone()));
    let model = Data2Vec::new(text::v2(), masking, Device::Cpu, 1).expect("a valid config");
    goldens.load_into(model.vars().variables(), "student");
    goldens.load_into(model.teacher().variables(), "teacher");
    let batch = Batch::new(goldens.forward["input.source"].shallow_clone()).expect("a batch");
    Text { model, batch, mask, goldens }
}

impl Text {
    /// Returns the token indices `(B·M, len, 1)` of the reference's rows from `start` on.
    ///
    /// Its order, 11 visible and then 9 masked tokens, comes from an unstable sort; ours is
    /// increasing.
    fn order(&self, start: i64, len: i64) -> Tensor {
        self.goldens.forward["order"].narrow(1, start, len).unsqueeze(-1)
    }

    /// Returns the decoder noise of a step at masked tokens, `(B·M, T, D)`.
    fn noise(&self, step: usize, tokens: &Tokens) -> Tensor {
        let noise = &golden("v2_text.noise")[&format!("noise.{step}")]; // (B·M, N/(B·M), D)
        let order = self.order(11, 9).expand_as(noise);
        tokens.x.zeros_like().scatter(1, &order, noise)
    }

    fn objective(&self, step: usize) -> Objective {
        let tokens = self.model.student().embed(&self.batch, true).expect("known token ids");
        let target = self.model.target(&self.batch, &tokens).expect("known token ids");
        let tokens = tokens.repeat(3);
        let noise = self.noise(step, &tokens);
        let mut rng = stream(1, Purpose::Step, &[]);
        regress(&self.model, &tokens, &self.mask, &target, Some(&noise), Some(&mut rng))
    }
}

#[test]
fn intermediate_values_match() {
    let t = text();
    let encoder = "student.modality_encoders.TEXT";
    let tokens = t.model.student().embed(&t.batch, false).expect("known token ids");
    for name in ["local_encoder", "project_features"] {
        t.goldens.assert_intermediate(&format!("{encoder}.{name}"), &tokens.x);
    }

    let repeated = tokens.repeat(3);
    let visible = t.mask.visible(repeated.lengths(), Device::Cpu);
    let zeroed = repeated.with_x(visible.zero_masked(&repeated.x));
    let increasing = t.order(0, 11).argsort(1, false); // (B·M, K, 1)
    let assert_visible = |name: &str, ours: &Tensor| {
        let theirs = t.goldens.intermediate(name);
        let theirs = theirs.gather(1, &increasing.expand_as(&theirs), false);
        t.goldens.assert_value(name, ours, &theirs);
    };
    assert_visible(&format!("{encoder}.context_encoder"), &visible.gather(&zeroed.x));
    let student =
        t.model.student().contextualize(&zeroed, Some(&visible), None).expect("positions");
    let teacher = t.model.teacher().layers(&t.batch, &tokens).expect("known token ids");
    assert_eq!((student.layers.len(), teacher.len()), (3, 3));
    for (i, (student, teacher)) in student.layers.iter().zip(&teacher).enumerate() {
        assert_visible(&format!("student.blocks.{i}.0"), &student.out);
        assert_visible(&format!("student.blocks.{i}.1"), &student.ffn);
        t.goldens.assert_intermediate(&format!("teacher.{i}.0"), &teacher.out);
        t.goldens.assert_intermediate(&format!("teacher.{i}.1"), &teacher.ffn);
    }
    let features = visible.restore(&student.x, &t.noise(0, &repeated));
    let features = repeated.with_x(features);
    t.goldens.assert_decoder(&format!("{encoder}.decoder"), &t.model, &features, &t.mask);
    t.goldens.assert_all_intermediates_compared();
}

#[test]
fn targets_predictions_loss_and_gradients_match() {
    let t = text();
    let objective = t.objective(0);
    assert_eq!(objective.num_masked, NUM_MASKED);
    assert!((objective.masked_share - 0.45).abs() < 1e-12);
    t.goldens.assert_objective(&objective);
    objective.loss.backward();
    t.goldens.assert_gradients(t.model.vars().variables(), NUM_MASKED);
}

/// Trains one step with the reference's noise.
fn train(t: &mut Text, optimizer: &mut AdamW, i: usize) -> (f64, f64) {
    let objective = t.objective(i);
    step(&mut t.model, optimizer, &objective, i, 0.5)
}

#[test]
fn five_steps_match() {
    let mut t = text();
    let mut optimizer = AdamW::new(t.model.vars().variables(), &fairseq_adam(tiny::adamw()));
    let goldens = Goldens::new("v2_text", TextV2, NUM_MASKED as f64);
    let step = |t: &mut &mut Text, i| train(t, &mut optimizer, i);
    // The reference updates its teacher at the start of the next step.
    goldens.assert_five_steps(&mut t, |t| &t.model, step, 4);
}

#[test]
fn one_pytorch_adamw_step_matches() {
    let mut t = text();
    let mut optimizer = AdamW::new(t.model.vars().variables(), &pytorch_adamw(tiny::adamw()));
    train(&mut t, &mut optimizer, 0);
    t.goldens.assert_weights(t.model.vars().variables(), "after_torch_adamw");
}
