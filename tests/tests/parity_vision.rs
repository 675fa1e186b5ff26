//! Vision equal to the reference implementations, number by number. Gates: `goldens/README.md`.

use data2vec_core::optim::OptimizerCompat;
use data2vec_core::{AdamW, AdamWConfig, Batch, Data2Vec, Data2VecConfig, Mask, Objective, Tokens};
use data2vec_tests::reference::{Tensors, golden};
use data2vec_tests::tiny::{FixedMask, difference};
use data2vec_tests::vision::{self, Reference};
use data2vec_vision::{PatchEncoder, PatchEncoderConfig};
use ndarray::Array2;
use tch::{Device, Kind, Tensor};

const VALUES: f64 = 2e-5;
const WEIGHTS: f64 = 5e-5;

struct Vision {
    reference: Reference,
    name: &'static str,
    model: Data2Vec<PatchEncoder>,
    batch: Batch,
    mask: Mask,
    forward: Tensors,
}

impl Vision {
    /// The reference's weights in our model, its input and its mask.
    fn new(reference: Reference) -> Self {
        let (name, config, input) = match reference {
            Reference::V2 => ("v2_image", vision::v2(), "input.source"),
            Reference::V1 => ("v1_image", vision::v1(), "input.img"),
        };
        let forward = golden(&format!("{name}.forward"));
        let mask = mask(&forward["mask"]);
        let model = model(config, &mask);
        let batch = Batch::new(forward[input].shallow_clone()).expect("images");
        let vision = Self { reference, name, model, batch, mask, forward };
        for (who, vars) in [
            ("student", vision.model.vars().variables()),
            ("teacher", vision.model.teacher().variables()),
        ] {
            let weights = golden(&format!("{name}.{who}"));
            for (ours, mut var) in vars {
                let value = reference.tensor(&weights, who, &ours, &var.size());
                let value = value.unwrap_or_else(|| panic!("{who} {ours} is not in the goldens"));
                tch::no_grad(|| var.copy_(&value));
            }
        }
        vision
    }

    fn mid(&self, name: &str) -> &Tensor {
        &self.forward[&format!("mid.{name}")]
    }

    /// The objective of step `step`; 2.0 with the noise of the reference.
    fn objective(&self, step: usize) -> Objective {
        let tokens = self.model.student().embed(&self.batch, true).expect("images");
        let target = self.model.target(&self.batch, &tokens).expect("images");
        let tokens = tokens.repeat(self.model.config().model.copies);
        let noise = self.forward.get(&format!("noise.{step}")).map(|noise| {
            let hidden = self.mask.to_tensor(Device::Cpu).unsqueeze(-1).expand_as(&tokens.x);
            tokens.x.zeros_like().masked_scatter(&hidden, noise) // (B·M, T, D)
        });
        self.model.regress(&tokens, &self.mask, &target, noise.as_ref(), None)
    }

    #[track_caller]
    fn assert_weights(&self, who: &str, expected: &str) {
        let tensors = golden(&format!("{}.{expected}", self.name));
        let prefix = if expected == "torch" { "after_torch_adamw" } else { expected };
        let vars = match who {
            "student" => self.model.vars().variables(),
            _ => self.model.teacher().variables(),
        };
        for (name, var) in vars {
            let theirs = self.reference.tensor(&tensors, prefix, &name, &var.size());
            let theirs = theirs.unwrap_or_else(|| panic!("{expected}: no {name}"));
            let off = self.reference.difference(&name, &var, &theirs);
            assert!(off < WEIGHTS, "{expected} {name} is off by {off}");
        }
    }
}

fn model(config: Data2VecConfig<PatchEncoderConfig>, mask: &Mask) -> Data2Vec<PatchEncoder> {
    let masking = Box::new(FixedMask(mask.clone()));
    Data2Vec::new(config, masking, Device::Cpu, 1).expect("possible settings")
}

/// `(rows, …)` of 0 and 1, flattened to one row of tokens each.
fn mask(hidden: &Tensor) -> Mask {
    let rows = hidden.size()[0] as usize;
    let hidden =
        Vec::<i64>::try_from(hidden.to_kind(Kind::Int64).flatten(0, -1)).expect("integers");
    let hidden: Vec<bool> = hidden.iter().map(|&h| h != 0).collect();
    let hidden = Array2::from_shape_vec((rows, hidden.len() / rows), hidden).expect("equal rows");
    Mask::new(hidden).expect("something hidden")
}

/// Without the CLS token.
fn patches(x: &Tensor) -> Tensor {
    x.narrow(1, 1, x.size()[1] - 1)
}

#[test]
fn intermediate_values_of_v2() {
    let v = Vision::new(Reference::V2);
    let (student, teacher) = (v.model.student(), v.model.teacher().encoder());
    let image = "modality_encoders.IMAGE";
    for (who, encoder) in [("student", student), ("teacher", teacher)] {
        let tokens = encoder.embed(&v.batch, false).expect("images");
        assert!(difference(&tokens.x, v.mid(&format!("{who}.{image}.local_encoder"))) < VALUES);
        let hidden = match who {
            "teacher" => encoder.contextualize(&tokens, None, None),
            _ => {
                let tokens = tokens.repeat(3);
                let visible = v.mask.visible(tokens.lengths(), Device::Cpu);
                encoder.contextualize(&tokens, Some(&visible), None)
            }
        };
        assert_eq!(hidden.layers.len(), 4);
        for (i, layer) in hidden.layers.iter().enumerate() {
            let block = match i {
                0 => format!("{who}.{image}.context_encoder.blocks.0"),
                _ => format!("{who}.blocks.{}", i - 1),
            };
            let [out, ffn] = [0, 1].map(|part| patches(v.mid(&format!("{block}.{part}"))));
            assert!(difference(&layer.out, &out) < VALUES, "{who} block {i}");
            assert!(difference(&layer.ffn, &ffn) < VALUES, "{who} block {i}, MLP");
        }
        let context = patches(v.mid(&format!("{who}.{image}.context_encoder")));
        assert!(difference(&hidden.layers[0].out, &context) < VALUES);
        if who == "student" {
            let cls = hidden.prefix.expect("a CLS token").select(1, 0);
            assert!(difference(&cls, &v.forward["pred.cls"]) < VALUES);
        }
    }
    let objective = v.objective(0);
    let decoder = v.mask.gather(v.mid(&format!("student.{image}.decoder")), 1);
    assert!(difference(&objective.prediction, &decoder) < VALUES);
}

#[test]
fn intermediate_values_of_v1() {
    let v = Vision::new(Reference::V1);
    let (student, teacher) = (v.model.student(), v.model.teacher().encoder());
    let tokens = student.embed(&v.batch, false).expect("images");
    assert!(difference(&tokens.x, v.mid("student.patch_embed")) < VALUES);
    let hidden = v.mask.to_tensor(Device::Cpu).unsqueeze(-1);
    let mask_token = v.model.mask_token().expect("1.0 has one");
    let masked = tokens.with(mask_token.where_self(&hidden, &tokens.x));
    let clean = teacher.embed(&v.batch, false).expect("images");
    for (who, encoder, tokens) in [("student", student, &masked), ("teacher", teacher, &clean)] {
        let bias = {
            use data2vec_core::FeatureEncoder;
            encoder.features().attention_bias(tokens, None).expect("relative positions")
        };
        assert!(difference(&bias, v.mid(&format!("{who}.rel_pos_bias"))) < VALUES);
        let layers = encoder.contextualize(tokens, None, None).layers;
        for (i, layer) in layers.iter().enumerate() {
            let [out, branch] =
                [0, 1].map(|part| patches(v.mid(&format!("{who}.blocks.{i}.{part}"))));
            assert!(difference(&layer.out, &out) < VALUES, "{who} block {i}");
            let vars = if who == "student" {
                v.model.vars().variables()
            } else {
                v.model.teacher().variables()
            };
            let scaled = &layer.ffn * &vars[&format!("encoder.transformer.blocks.{i}.scale2")];
            assert!(difference(&scaled, &branch) < VALUES, "{who} block {i}, MLP");
        }
    }
    assert!(difference(&v.objective(0).prediction, v.mid("student.lm_head")) < VALUES);
}

#[test]
fn sin_cos_positions_are_the_reference_s() {
    use data2vec_core::FeatureEncoder;
    let v = Vision::new(Reference::V2);
    let name = "student.modality_encoders.IMAGE.fixed_positional_encoder.positions";
    let expected = &golden("v2_image.student")[name];
    let zeros = Tensor::zeros(expected.size(), (Kind::Float, Device::Cpu));
    let tokens = Tokens::new(zeros, None).in_grid(4, 4);
    let positions = v.model.student().features().add_positions(&tokens, false);
    assert!(difference(&positions, expected) < 1e-6);
}

#[test]
fn targets_predictions_loss_and_gradients() {
    for reference in [Reference::V1, Reference::V2] {
        let v = Vision::new(reference);
        let objective = v.objective(0);
        assert!(difference(&objective.target, &v.forward["target.regression"]) < VALUES);
        assert!(difference(&objective.prediction, &v.forward["pred.regression"]) < VALUES);
        let count = objective.num_hidden as f64;
        let loss = objective.loss.double_value(&[]);
        let expected = v.forward["loss.sum"].double_value(&[]);
        let loss = if reference == Reference::V1 { loss / count } else { loss }; // a mean there
        assert!((loss / expected - 1.0).abs() < 1e-5, "{loss} is not {expected}");

        objective.loss.backward();
        let grads = golden(&format!("{}.grads", v.name));
        for (name, var) in v.model.vars().variables() {
            let expected = reference.tensor(&grads, "grad", &name, &var.size());
            let expected = expected.unwrap_or_else(|| panic!("no gradient of {name}"));
            let gate = 1e-5 + 1e-4 * expected.abs().max().double_value(&[]);
            let off = difference(&(var.grad() / count), &expected);
            assert!(off < gate, "{reference:?}: gradient of {name} is off by {off}");
        }
    }
}

/// Backward, optimizer, nothing else. Returns loss and gradient norm, both for the mean.
fn step(v: &Vision, optimizer: &mut AdamW, step: usize, clip: f64) -> (f64, f64) {
    optimizer.zero_grad();
    let objective = v.objective(step);
    objective.loss.backward();
    let count = objective.num_hidden as f64;
    let norm = optimizer.step(step as u64 + 1, 1e-3, count, Some(clip)).expect("a step");
    (objective.loss.double_value(&[]) / count, norm)
}

fn close(ours: f64, theirs: f64) -> bool {
    (ours / theirs - 1.0).abs() < 1e-4
}

#[test]
fn five_steps_of_v2() {
    let mut v = Vision::new(Reference::V2);
    let compat = vec![OptimizerCompat::FairseqEpsilon, OptimizerCompat::DecayEverything];
    let config = AdamWConfig { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.05, compat };
    let mut optimizer = AdamW::new(v.model.vars().variables(), &config);
    for i in 0..5 {
        let (loss, norm) = step(&v, &mut optimizer, i, 0.5);
        let expected = v.forward["traj.loss"].double_value(&[i as i64]) / 72.0;
        assert!(close(loss, expected), "step {i}: loss {loss} is not {expected}");
        let expected = v.forward["traj.grad_norm"].double_value(&[i as i64]);
        assert!(close(norm, expected), "step {i}: norm {norm} is not {expected}");
        if i == 4 {
            break; // the reference moves its teacher at the start of the next step
        }
        v.model.update_teacher(i as u64 + 1).expect("a step");
        if i == 0 {
            v.assert_weights("student", "after_student");
            v.assert_weights("teacher", "after_teacher");
        }
    }
    v.assert_weights("student", "final_student");
    v.assert_weights("teacher", "final_teacher");
}

#[test]
fn one_step_of_pytorchs_adamw() {
    let v = Vision::new(Reference::V2);
    let compat = vec![OptimizerCompat::DecayEverything];
    let config = AdamWConfig { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.05, compat };
    let mut optimizer = AdamW::new(v.model.vars().variables(), &config);
    step(&v, &mut optimizer, 0, 0.5);
    v.assert_weights("student", "torch");
}

#[test]
fn five_steps_of_v1() {
    let mut v = Vision::new(Reference::V1);
    let mut optimizer = AdamW::new(v.model.vars().variables(), &vision::v1_adamw());
    let norms = [0.348_959_74, 0.190_510_50, 0.123_239_79, 0.102_787_20, 0.083_286_05];
    for (i, norm_expected) in norms.into_iter().enumerate() {
        let (loss, norm) = step(&v, &mut optimizer, i, 0.2);
        let expected = v.forward["traj.loss"].double_value(&[i as i64]);
        assert!(close(loss, expected), "step {i}: loss {loss} is not {expected}");
        assert!(close(norm, norm_expected), "step {i}: norm {norm} is not {norm_expected}");
        v.model.update_teacher(i as u64 + 1).expect("a step");
        if i == 0 {
            v.assert_weights("student", "after_student");
            v.assert_weights("teacher", "after_teacher");
        }
    }
    v.assert_weights("student", "final_student");
    v.assert_weights("teacher", "final_teacher");
}
