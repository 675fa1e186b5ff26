//! data2vec 1.0 and 2.0 for images match the reference implementations. Tolerances: see `goldens/README.md`.

use data2vec_core::{AdamW, AdamWConfig, Batch, Data2Vec, FeatureEncoder, Mask, Objective, Tokens};
use data2vec_tests::parity::{Goldens, fairseq_adam, layer_norm, pytorch_adamw, step};
use data2vec_tests::reference::golden;
use data2vec_tests::tiny::{FixedMask, max_abs_diff, regress};
use data2vec_tests::vision::{self, Reference};
use data2vec_vision::PatchEncoder;
use tch::{Device, Kind, Tensor};

struct Vision {
    model: Data2Vec<PatchEncoder>,
    batch: Batch,
    mask: Mask,
    goldens: Goldens<Reference>,
}

impl Vision {
    /// Loads the reference's weights, input and mask.
    fn new(reference: Reference) -> Self {
        let (name, config, input, loss_tokens) = match reference {
            Reference::V2 => ("v2_image", vision::v2(), "input.source", 72.0),
            Reference::V1 => ("v1_image", vision::v1(), "input.img", 1.0),
        };
        let goldens = Goldens::new(name, reference, loss_tokens);
        let mask = goldens.mask();
        let masking = Box::new(FixedMask(mask.clone()));
        let model = Data2Vec::new(config, masking, Device::Cpu, 1).expect("a valid config");
        goldens.load_into(model.vars().variables(), "student");
        goldens.load_into(model.teacher().variables(), "teacher");
        let batch = Batch::new(goldens.forward[input].shallow_clone()).expect("images");
        Self { model, batch, mask, goldens }
    }

    /// Returns 2.0's decoder noise of a step at masked tokens, `(B·M, T, D)`.
    fn noise(&self, step: usize, tokens: &Tokens) -> Option<Tensor> {
        self.goldens.forward.get(&format!("noise.{step}")).map(|noise| {
            let is_masked = self.mask.to_tensor(Device::Cpu).unsqueeze(-1).expand_as(&tokens.x);
            tokens.x.zeros_like().masked_scatter(&is_masked, noise)
        })
    }

    /// Returns the objective of a step; 2.0's with the reference's noise.
    fn objective(&self, step: usize) -> Objective {
        let tokens = self.model.student().embed(&self.batch, true).expect("images");
        let target = self.model.target(&self.batch, &tokens).expect("images");
        let tokens = tokens.repeat(self.model.config().model.copies);
        let noise = self.noise(step, &tokens);
        regress(&self.model, &tokens, &self.mask, &target, noise.as_ref(), None)
    }

    /// Asserts that `ours` is close to the reference's value `name` without its CLS token.
    #[track_caller]
    fn assert_patches(&self, name: &str, ours: &Tensor) {
        let theirs = self.goldens.intermediate(name);
        let theirs = theirs.narrow(1, 1, theirs.size()[1] - 1);
        self.goldens.assert_value(name, ours, &theirs);
    }
}

#[test]
fn v2_intermediate_values_match() {
    let v = Vision::new(Reference::V2);
    let (student, teacher) = (v.model.student(), v.model.teacher().encoder());
    for (who, encoder) in [("student", student), ("teacher", teacher)] {
        let image = format!("{who}.modality_encoders.IMAGE");
        let tokens = encoder.embed(&v.batch, false).expect("images");
        v.goldens.assert_intermediate(&format!("{image}.local_encoder"), &tokens.x);
        let repeated = tokens.repeat(3);
        let visible = v.mask.visible(repeated.lengths(), Device::Cpu);
        let output = match who {
            "teacher" => encoder.contextualize(&tokens, None, None).expect("positions"),
            _ => encoder.contextualize(&repeated, Some(&visible), None).expect("positions"),
        };
        assert_eq!(output.layers.len(), 4);
        for (i, layer) in output.layers.iter().enumerate() {
            let block = match i {
                0 => format!("{image}.context_encoder.blocks.0"),
                _ => format!("{who}.blocks.{}", i - 1),
            };
            v.assert_patches(&format!("{block}.0"), &layer.out);
            v.assert_patches(&format!("{block}.1"), &layer.ffn);
        }
        v.assert_patches(&format!("{image}.context_encoder"), &output.layers[0].out);
        if who == "student" {
            v.goldens.assert_intermediate(&format!("{image}.project_features"), &tokens.x);
            let cls = output.prefix.expect("a CLS token").select(1, 0);
            v.goldens.assert_value("CLS", &cls, &v.goldens.forward["pred.cls"]);
            let noise = v.noise(0, &repeated).expect("noise");
            let features = repeated.with_x(visible.restore(&output.x, &noise));
            v.goldens.assert_decoder(&format!("{image}.decoder"), &v.model, &features, &v.mask);
        }
    }
    v.goldens.assert_all_intermediates_compared();
}

#[test]
fn v1_intermediate_values_match() {
    let v = Vision::new(Reference::V1);
    let tokens = v.model.student().embed(&v.batch, false).expect("images");
    v.goldens.assert_intermediate("student.patch_embed", &tokens.x);
    let is_masked = v.mask.to_tensor(Device::Cpu).unsqueeze(-1);
    let mask_token = v.model.mask_token().expect("a mask token");
    let masked = tokens.with_x(mask_token.where_self(&is_masked, &tokens.x));
    let teacher = v.model.teacher();
    let clean = teacher.encoder().embed(&v.batch, false).expect("images");
    for (who, encoder, vars, tokens) in [
        ("student", v.model.student(), v.model.vars().variables(), &masked),
        ("teacher", teacher.encoder(), teacher.variables(), &clean),
    ] {
        let bias = encoder.features().attention_bias(tokens, None).remove(0);
        v.goldens.assert_intermediate(&format!("{who}.rel_pos_bias"), &bias);
        let layers = encoder.contextualize(tokens, None, None).expect("positions").layers;
        assert_eq!(layers.len(), 4);
        for (i, layer) in layers.iter().enumerate() {
            v.assert_patches(&format!("{who}.blocks.{i}.0"), &layer.out);
            let scaled = &layer.ffn * &vars[&format!("encoder.transformer.blocks.{i}.scale2")];
            v.assert_patches(&format!("{who}.blocks.{i}.1"), &scaled);
        }
        if who == "student" {
            let norm = layer_norm(&vars, "decoder.norm", &layers[3].out, 1e-6);
            v.assert_patches("student.norm", &norm);
        }
    }
    v.goldens.assert_intermediate("student.lm_head", &v.objective(0).prediction);
    v.goldens.assert_all_intermediates_compared();
}

#[test]
fn sin_cos_positions_match() {
    let v = Vision::new(Reference::V2);
    let name = "student.modality_encoders.IMAGE.fixed_positional_encoder.positions";
    let expected = &golden("v2_image.student")[name];
    let zeros = Tensor::zeros(expected.size(), (Kind::Float, Device::Cpu));
    let tokens = Tokens::new(zeros, None).with_grid(4, 4);
    let positions = v.model.student().features().add_positions(&tokens, false).expect("positions");
    assert!(max_abs_diff(&positions, expected) < 1e-6);
}

#[test]
fn targets_predictions_loss_and_gradients_match() {
    for reference in [Reference::V1, Reference::V2] {
        let v = Vision::new(reference);
        let objective = v.objective(0);
        v.goldens.assert_objective(&objective);
        objective.loss.backward();
        v.goldens.assert_gradients(v.model.vars().variables(), objective.num_masked);
    }
}

/// Runs five steps and compares them with the reference.
///
/// `teacher_updates` is the number of EMA updates in its final state.
fn assert_five_steps(reference: Reference, adam: &AdamWConfig, clip: f64, teacher_updates: usize) {
    let mut v = Vision::new(reference);
    let mut optimizer = AdamW::new(v.model.vars().variables(), adam);
    let goldens = Vision::new(reference).goldens;
    let train = |v: &mut &mut Vision, i| {
        let objective = v.objective(i);
        step(&mut v.model, &mut optimizer, &objective, i, clip)
    };
    goldens.assert_five_steps(&mut v, |v| &v.model, train, teacher_updates);
}

fn v2_adamw() -> AdamWConfig {
    AdamWConfig { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.05, compat: vec![] }
}

#[test]
fn five_v2_steps_match() {
    // The reference updates its teacher at the start of the next step.
    assert_five_steps(Reference::V2, &fairseq_adam(v2_adamw()), 0.5, 4);
}

#[test]
fn five_v1_steps_match() {
    assert_five_steps(Reference::V1, &vision::v1_adamw(), 0.2, 5);
}

#[test]
fn one_pytorch_adamw_step_matches() {
    let mut v = Vision::new(Reference::V2);
    let mut optimizer = AdamW::new(v.model.vars().variables(), &pytorch_adamw(v2_adamw()));
    let objective = v.objective(0);
    step(&mut v.model, &mut optimizer, &objective, 0, 0.5);
    v.goldens.assert_weights(v.model.vars().variables(), "after_torch_adamw");
}
