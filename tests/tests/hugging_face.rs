//! Round trips with transformers: imports its models, and loads our exports in it.
//!
//! `DATA2VEC_PYTHON` is the path of a Python interpreter with transformers; `cargo xtask test --python`
//! sets one up.

#![allow(clippy::print_stderr, reason = "reports why a test is skipped")]

use std::path::{Path, PathBuf};
use std::process::Command;

use data2vec_core::io::checkpoint::{read_tensors, write_tensors};
use data2vec_core::io::convert::{ExportedModel, ImportOptions, Imported, Model, Source};
use data2vec_core::{
    Batch, Data2Vec, Data2VecConfig, Encoder, EncoderOutput, FeatureEncoder, FinetunedModel, Mask,
    Result,
};
use data2vec_nlp::{TokenEncoder, Tokenizer};
use data2vec_speech::WaveEncoder;
use data2vec_tests::reference::Tensors;
use data2vec_tests::tiny::{self, FixedMask, max_abs_diff};
use data2vec_tests::{text, vision};
use data2vec_vision::PatchEncoder;
use ndarray::array;
use tch::{Device, Kind, Tensor};

const TOLERANCE: f64 = 1e-5;
const EXPECTED: &str = "expected.safetensors";

/// Returns the Python interpreter; `None` if it is not set, with a message.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("DATA2VEC_PYTHON").map(PathBuf::from);
    if python.is_none() {
        eprintln!("skipped: DATA2VEC_PYTHON is not set");
    }
    python
}

fn run(python: &Path, what: &str, dir: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hugging_face.py");
    let mut command = Command::new(python);
    command.arg(script).arg(what).arg(dir).env("HF_HUB_OFFLINE", "1");
    // Python's own LibTorch, not ours.
    let output = command.env_remove("LD_LIBRARY_PATH").env_remove("DYLD_LIBRARY_PATH").output();
    let output = output.expect("an interpreter");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {stderr}");
}

fn inputs(tensors: &Tensors) -> Batch {
    let get = |name: &str| tensors.get(&format!("input.{name}")).map(Tensor::shallow_clone);
    let values = ["input_values", "pixel_values", "input_ids"].into_iter().find_map(get);
    let values = values.expect("an input");
    match get("attention_mask") {
        None => Batch::new(values),
        Some(mask) => {
            let lengths = mask.sum_dim_intlist(&[1_i64][..], false, Kind::Int64);
            Batch::padded(values, Vec::try_from(lengths).expect("integers"))
        }
    }
    .expect("a batch")
}

/// Runs the model in `dir`; returns the features of all blocks, and the scores if it has a head.
fn outputs<F: FeatureEncoder>(dir: &Path, batch: &Batch) -> (EncoderOutput, Option<Tensor>) {
    if dir.join("head.toml").exists() {
        let model = FinetunedModel::<F>::load(dir, Device::Cpu).expect("a model");
        let (scores, output) = model.forward(batch).expect("a valid batch");
        return (output, Some(scores));
    }
    let (encoder, _) = Encoder::<F>::load(dir, Device::Cpu).expect("an encoder");
    (encoder.forward(batch).expect("a valid batch"), None)
}

/// Asserts that the model in `dir` gives the outputs in `tensors`.
fn assert_outputs<F: FeatureEncoder>(name: &str, dir: &Path, tensors: &Tensors) {
    let (output, scores) = outputs::<F>(dir, &inputs(tensors));
    assert_eq!(output.layers.len(), 2);
    for (i, layer) in output.layers.iter().enumerate() {
        let expected = &tensors[&format!("hidden.{}", i + 1)];
        let prefix = expected.size()[1] - layer.out.size()[1]; // CLS
        for (row, &len) in output.lengths.iter().enumerate() {
            let expected = expected.get(row as i64).narrow(0, prefix, len);
            let diff = max_abs_diff(&layer.out.get(row as i64).narrow(0, 0, len), &expected);
            assert!(diff < TOLERANCE, "{name}: block {i}, row {row} differs by {diff}");
        }
    }
    assert_eq!(scores.is_some(), tensors.contains_key("logits"), "{name}");
    if let Some(scores) = scores {
        let rows = output.lengths.iter().enumerate();
        for (row, &len) in rows.filter(|_| scores.dim() == 3) {
            let cut = |x: &Tensor| x.get(row as i64).narrow(0, 0, len);
            let diff = max_abs_diff(&cut(&scores), &cut(&tensors["logits"]));
            assert!(diff < TOLERANCE, "{name}: scores of row {row} differ by {diff}");
        }
        if scores.dim() == 2 {
            let diff = max_abs_diff(&scores, &tensors["logits"]);
            assert!(diff < TOLERANCE, "{name}: scores differ by {diff}");
        }
    }
}

/// Imports the model in `from`, compares its outputs, and exports it to `to`.
fn round_trip<F>(
    from: &Path,
    to: &Path,
    import: impl Fn(&mut Source) -> Result<Option<Imported<F::Config>>>,
    export: impl Fn(&Model<F::Config>) -> Result<ExportedModel>,
) where
    F: FeatureEncoder,
{
    let name = from.file_name().expect("a name").to_string_lossy().into_owned();
    let mut source = Source::open(from).expect("a transformers model");
    let imported = import(&mut source).expect(&name).expect("a known layout");
    let dir = to.parent().expect("a directory").with_file_name("ours").join(&name);
    imported.model.write(&dir).expect("a directory");
    let expected = read_tensors(&from.join(EXPECTED)).expect("outputs");
    assert_outputs::<F>(&name, &dir, &expected);
    let exported = export(&Model::read::<F>(&dir).expect("a model")).expect(&name);
    exported.write(to).expect("a directory");
    std::fs::copy(from.join(EXPECTED), to.join(EXPECTED)).expect("a file");
}

#[test]
fn transformers_models_round_trip() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let (theirs, back) = (dir.path().join("theirs"), dir.path().join("back"));
    run(&python, "make", &theirs);
    let options = ImportOptions::default();
    for name in ["audio", "audio_ctc", "audio_classifier"] {
        use data2vec_speech::convert::{import, to_hugging_face};
        let import = |source: &mut Source| import(source, &options);
        round_trip::<WaveEncoder>(&theirs.join(name), &back.join(name), import, to_hugging_face);
    }
    for name in ["vision", "vision_classifier", "vision_cls_classifier"] {
        use data2vec_vision::convert::{import, to_hugging_face};
        let import = |source: &mut Source| import(source, &options);
        round_trip::<PatchEncoder>(&theirs.join(name), &back.join(name), import, to_hugging_face);
    }
    for name in ["text", "text_classifier", "text_regression"] {
        use data2vec_nlp::convert::{import, to_hugging_face};
        let import = |source: &mut Source| import(source, &options, None);
        round_trip::<TokenEncoder>(&theirs.join(name), &back.join(name), import, to_hugging_face);
    }
    run(&python, "check", &back);
}

/// Creates a random 1.0 model and exports it to `dir` for transformers, with its outputs for `input`.
fn export_random<F: FeatureEncoder>(
    config: Data2VecConfig<F::Config>,
    (input, values): (&str, Tensor),
    dir: &Path,
    export: impl Fn(&Model<F::Config>) -> Result<ExportedModel>,
) {
    let mask = Mask::new(array![[true, false]]).expect("a mask");
    let model = Data2Vec::<F>::new(config, Box::new(FixedMask(mask)), Device::Cpu, 1);
    let model = model.expect("a valid config");
    for (name, var) in model.vars().variables() {
        let offset = f64::from(u8::from(name.contains("norm") && name.ends_with("weight")));
        // The key bias has no effect, and BEiT has none.
        if !(name.ends_with("qkv.bias") && dir.ends_with("vision")) {
            let _ = tch::no_grad(|| var.shallow_clone().normal_(offset, 0.2));
        }
    }
    let native = dir
        .parent()
        .expect("a directory")
        .with_extension("made")
        .join(dir.file_name().expect("a name"));
    model.export(&native).expect("an encoder");
    export(&Model::read::<F>(&native).expect("a model"))
        .expect("1.0")
        .write(dir)
        .expect("a directory");
    let mut tensors: Tensors = [(format!("input.{input}"), values)].into();
    let (output, _) = outputs::<F>(&native, &inputs(&tensors));
    let cls = i64::from(output.prefix.is_some());
    for (i, layer) in output.layers.iter().enumerate() {
        // Hugging Face's output includes the CLS token, which is not compared.
        let layer = layer.out.constant_pad_nd([0, 0, cls, 0]);
        tensors.insert(format!("hidden.{}", i + 1), layer);
    }
    write_tensors(&dir.join(EXPECTED), &tensors.into_iter().collect()).expect("a file");
}

#[test]
fn transformers_loads_our_exports() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path().join("there");
    tch::manual_seed(1);
    let float = (Kind::Float, Device::Cpu);
    let wave = ("input_values", Tensor::randn([2, 1600], float));
    let to = data2vec_speech::convert::to_hugging_face;
    export_random::<WaveEncoder>(tiny::speech_v1(), wave, &dir.join("audio"), to);
    let image = ("pixel_values", Tensor::randn([2, 3, 32, 32], float));
    let to = data2vec_vision::convert::to_hugging_face;
    export_random::<PatchEncoder>(vision::v1(), image, &dir.join("vision"), to);

    let words = "The same ids in both tokenizers: naïve café, 中文 🙂.\n";
    let tokenizer = Tokenizer::train(std::iter::repeat_n(words, 4), 290).expect("enough text");
    let mut config = text::v1();
    (config.features.vocabulary, config.features.mask) = (290, tokenizer.special().mask);
    let ids = ("input_ids", Tensor::randint(290, [2, 20], (Kind::Int64, Device::Cpu)));
    let to = data2vec_nlp::convert::to_hugging_face;
    // Every id but that of padding, which is masked out.
    let ids = (ids.0, ids.1.where_self(&ids.1.ne(1), &ids.1.full_like(5)));
    export_random::<TokenEncoder>(config, ids, &dir.join("text"), to);
    data2vec_nlp::convert::save_tokenizer(&tokenizer, &dir.join("text")).expect("files");
    let special = tokenizer.special();
    let expected = [vec![special.bos], tokenizer.encode(words).expect("ids"), vec![special.eos]];
    let ids: Vec<String> = expected.concat().iter().map(i64::to_string).collect();
    std::fs::write(dir.join("text/text.txt"), words).expect("a file");
    std::fs::write(dir.join("text/ids.txt"), ids.join(" ")).expect("a file");
    run(&python, "check", &dir);
}
