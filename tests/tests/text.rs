//! Text models: masking, padding, options of 1.0, exported encoders with a tokenizer.

use std::collections::BTreeMap;

use data2vec_core::random::{Purpose, stream};
use data2vec_core::{
    Batch, Data2Vec, Data2VecConfig, Encoder, Error, Mask, MaskStrategy, MaskedInput, ModelCompat,
    Objective, Result, Substitute, Target, TargetNorm,
};
use data2vec_nlp::{TextEncoder, TokenEncoder, TokenEncoderConfig, Tokenizer};
use data2vec_tests::padding::{assert_padding_has_no_effect, mask};
use data2vec_tests::text;
use data2vec_tests::tiny::{FixedMask, max_abs_diff, regress};
use tch::{Device, Kind, Tensor};

/// Creates a model whose teacher differs from its student.
fn model(config: &Data2VecConfig<TokenEncoderConfig>, mask: &Mask) -> Data2Vec<TokenEncoder> {
    let masking = Box::new(FixedMask(mask.clone()));
    let model = Data2Vec::new(config.clone(), masking, Device::Cpu, 1).expect("a valid config");
    tch::no_grad(|| {
        // Sorted by name: two models of the same config get the same teacher.
        for (_, mut tensor) in BTreeMap::from_iter(model.teacher().variables()) {
            let _ = tensor.g_add_(&(tensor.randn_like() * 0.02));
        }
    });
    model
}

fn ids(rows: i64, len: i64) -> Tensor {
    tch::manual_seed(5);
    Tensor::randint_low(4, 63, [rows, len], (Kind::Int64, Device::Cpu))
}

fn forward(model: &Data2Vec<TokenEncoder>, batch: &Batch) -> Objective {
    tch::manual_seed(7); // seeds the decoder's noise
    model.forward(batch, &mut stream(1, Purpose::Step, &[0]), true).expect("a forward pass")
}

fn both_versions() -> [Data2VecConfig<TokenEncoderConfig>; 2] {
    let mut v2 = text::v2();
    v2.model.copies = 1;
    [text::v1(), v2]
}

#[test]
fn student_predictions_do_not_depend_on_masked_words() {
    let mask = mask(12, &[&[2, 3, 7], &[0, 11]]);
    for config in both_versions() {
        let model = model(&config, &mask);
        let ids = ids(2, 12);
        let other = ids.masked_fill(&mask.to_tensor(Device::Cpu), 9);
        let predictions =
            [ids, other].map(|ids| forward(&model, &Batch::new(ids).expect("a batch")).prediction);
        assert!(max_abs_diff(&predictions[0], &predictions[1]) == 0.0);
    }
}

#[test]
fn more_padding_does_not_change_the_loss() {
    let rows: [&[usize]; 2] = [&[1, 4, 5], &[0, 2]];
    for config in both_versions() {
        let losses = [9, 14].map(|len| {
            let mask = mask(len as usize, &rows);
            tch::manual_seed(1);
            let model = model(&config, &mask);
            let real = ids(2, 9);
            let inputs = Tensor::full([2, len], 1, (Kind::Int64, Device::Cpu));
            inputs.narrow(1, 0, 9).copy_(&real);
            let batch = Batch::padded(inputs, vec![9, 6]).expect("a batch");
            let tokens = model.student().embed(&batch, false).expect("known token ids");
            let target = model.target(&batch, &tokens).expect("known token ids");
            let noise = tokens.x.zeros_like();
            regress(&model, &tokens, &mask, &target, Some(&noise), None).loss.double_value(&[])
        });
        assert!((losses[0] / losses[1] - 1.0).abs() < 1e-5, "{losses:?}");
    }
}

#[test]
fn padded_rows_equal_single_rows() {
    let masked: [&[usize]; 3] = [&[1, 4, 5, 13], &[0, 2], &[5, 8]];
    for (name, config) in ["1.0", "2.0"].into_iter().zip(both_versions()) {
        let model = model(&config, &mask(14, &[&[1]]));
        assert_padding_has_no_effect(name, &model, &ids(3, 14), &[14, 6, 9], &masked, 1e-5);
    }
}

#[test]
fn v1_masks_with_the_mask_token_of_the_vocabulary() {
    let mask = mask(8, &[&[2, 5]]);
    let model = model(&text::v1(), &mask);
    assert!(!model.vars().variables().contains_key("mask_token"), "it is in the vocabulary");
    let words = ids(1, 8);
    let objective = forward(&model, &Batch::new(words.shallow_clone()).expect("a batch"));
    let replaced = words.masked_fill(&mask.to_tensor(Device::Cpu), 63);
    let expected =
        model.student().forward(&Batch::new(replaced).expect("a batch")).expect("a forward pass");
    let tokens = model.student().embed(&Batch::new(words).expect("a batch"), false);
    let tokens = tokens.expect("known token ids");
    let is_masked = mask.to_tensor(Device::Cpu).unsqueeze(-1);
    let masked = model.mask_token().expect("a mask token").where_self(&is_masked, &tokens.x);
    let output =
        model.student().contextualize(&tokens.with_x(masked), None, None).expect("positions");
    assert!(max_abs_diff(&output.x, &expected.x) < 1e-6);
    objective.loss.backward();
    let grad = model.vars().variables()["encoder.features.embed.words"].grad();
    assert!(grad.get(63).abs().max().double_value(&[]) > 0.0, "`<mask>` is trained");
    assert_eq!(grad.get(1).abs().max().double_value(&[]), 0.0, "`<pad>` is not");
}

#[test]
fn substitutes_are_shown_to_the_student_and_not_predicted() {
    let masked = mask(8, &[&[2, 5]]);
    let substitute = Substitute { row: 0, token: 3, id: 40 };
    let substituted = masked.clone().with_substitutes(vec![substitute]).expect("a visible token");
    let mut config = text::v1();
    let [plain, other] = [&masked, &substituted].map(|mask| {
        tch::manual_seed(1);
        model(&config, mask)
    });
    let words = ids(1, 8);
    let objective = forward(&other, &Batch::new(words.shallow_clone()).expect("a batch"));
    assert_eq!(objective.num_masked, 2);
    let changed = words.copy();
    let _ = changed.select(1, 3).fill_(40);
    let expected = forward(&plain, &Batch::new(changed).expect("a batch"));
    assert!(max_abs_diff(&objective.prediction, &expected.prediction) == 0.0);
    assert!(
        max_abs_diff(&objective.target, &expected.target) > 1e-3,
        "the teacher sees the original"
    );

    let of_masked = Substitute { token: 2, ..substitute };
    assert!(masked.clone().with_substitutes(vec![of_masked]).is_err());
    config.features.early_positions = true;
    let early = model(&config, &substituted);
    let batch = Batch::new(words).expect("a batch");
    let error = early.forward(&batch, &mut stream(1, Purpose::Step, &[0]), true);
    assert!(matches!(error, Err(Error::Input(reason)) if reason.contains("early_positions")));
}

#[test]
fn compat_teacher_sees_only_masked_words() {
    let mask = mask(10, &[&[1, 4, 5, 8], &[2, 6]]);
    let mut config = text::v1();
    config.target.layer_norm = TargetNorm::Layer; // as released; it normalizes each token separately
    config.model.compat = vec![ModelCompat::TeacherSeesHidden];
    let model = model(&config, &mask);
    let words = ids(2, 10);
    let target = forward(&model, &Batch::new(words.shallow_clone()).expect("a batch")).target;
    // fairseq gives its teacher only the masked words, with consecutive positions.
    let teacher = model.teacher().encoder();
    let mut row = 0;
    for (b, indices) in [(0, vec![1_i64, 4, 5, 8]), (1, vec![2, 6])] {
        let alone = words.get(b).index_select(0, &Tensor::from_slice(&indices)).unsqueeze(0);
        let batch = Batch::new(alone).expect("a batch");
        let tokens = model.student().embed(&batch, false).expect("known token ids");
        let layers = teacher.contextualize(&tokens, None, None).expect("positions").layers;
        let expected = config.target.build(&layers, None).squeeze_dim(0);
        let len = indices.len() as i64;
        assert!(max_abs_diff(&target.narrow(0, row, len), &expected) < 2e-6, "row {b}");
        row += len;
    }
    config.model.masked_input = MaskedInput::Drop;
    let error = Data2Vec::<TokenEncoder>::new(config, Box::new(FixedMask(mask)), Device::Cpu, 1);
    assert!(matches!(error, Err(Error::Config { key, .. }) if key == "model.compat"));
}

#[test]
fn exported_encoder_requires_its_tokenizer() {
    let tokenizer = Tokenizer::train(["a few words, a few more words"; 9].into_iter(), 270);
    let tokenizer = tokenizer.expect("enough text");
    let mut config = text::v2();
    (config.features.vocabulary, config.features.mask) = (270, 269);
    let model = model(&config, &mask(4, &[&[1]]));
    let folder = tempfile::tempdir().expect("a directory");
    model.export(folder.path()).expect("written");
    assert!(TextEncoder::load(folder.path(), Device::Cpu).is_err(), "no tokenizer");
    tokenizer.save(folder.path()).expect("written");
    let encoder = TextEncoder::load(folder.path(), Device::Cpu).expect("an encoder");

    let ids = encoder.tokens("a few\n\nmore words").expect("text");
    assert_eq!((ids[0], ids.iter().filter(|&&id| id == 2).count()), (0, 2));
    let layers = encoder.layers("a few\n\nmore words").expect("text");
    assert_eq!((layers.len(), layers[2].dim()), (3, (ids.len(), 48)));
    let (raw, _) = Encoder::<TokenEncoder>::load(folder.path(), Device::Cpu).expect("an encoder");
    let inputs = Tensor::from_slice(&ids).unsqueeze(0);
    let output = raw.forward(&Batch::new(inputs).expect("a batch")).expect("a forward pass");
    let features = encoder.features("a few\n\nmore words").expect("text");
    let features = Tensor::try_from(features).expect("an array").unsqueeze(0);
    assert!(max_abs_diff(&features, &output.x) == 0.0);
    assert_eq!(encoder.features("").expect("no text").dim(), (1, 48));

    let long = "a few words ".repeat(50);
    let ids = encoder.tokens(&long).expect("text");
    assert!(ids.len() > 32, "more than max_tokens");
    assert_eq!(encoder.features(&long).expect("text").dim(), (ids.len(), 48));

    let other = Tokenizer::train(["a few words, a few more words"; 9].into_iter(), 265);
    other.expect("enough text").save(folder.path()).expect("written");
    let error = TextEncoder::load(folder.path(), Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("features.vocabulary: is 270, the tokenizer has 265"), "{error}");
}

#[test]
fn rejects_invalid_token_ids() {
    let model = model(&text::v2(), &mask(4, &[&[1]]));
    let embed = |ids: Tensor| {
        let error = model.student().embed(&Batch::new(ids).expect("a batch"), false).unwrap_err();
        error.to_string()
    };
    let of = |ids: &[i64]| Tensor::from_slice(ids).unsqueeze(0);
    assert!(embed(of(&[0, 64])).contains("token id 64 is outside 0..64"));
    assert!(embed(of(&[-1, 6])).contains("token id -1"));
    assert!(embed(of(&[5; 33])).contains("33 tokens exceed features.max_tokens = 32"));
    assert!(embed(of(&[5; 3]).to_kind(Kind::Float)).contains("token ids must be (B, T) of Int64"));
}

#[test]
fn text_mask_strategies_work_with_the_models() -> Result<()> {
    use data2vec_nlp::{OtherTokens, SpanMask, TextMaskConfig, TokenMask};
    let others = Some(OtherTokens { random: 0.1, unchanged: 0.1, vocabulary: 64 });
    let spans = TextMaskConfig::Spans(SpanMask { probability: 0.5, length: 2, others });
    let tokens = TextMaskConfig::Tokens(TokenMask { probability: 0.48 });
    for (config, masking) in [(text::v1(), spans), (text::v2(), tokens)] {
        let masking: Box<dyn MaskStrategy> = Box::new(masking);
        let model = Data2Vec::<TokenEncoder>::new(config, masking, Device::Cpu, 1)?;
        let batch = Batch::padded(ids(3, 20), vec![20, 9, 2])?;
        let objective = forward(&model, &batch);
        assert!(objective.loss.double_value(&[]).is_finite() && objective.num_masked >= 3);
    }
    Ok(())
}
