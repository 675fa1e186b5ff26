//! Round trips with transformers: its models here, ours there, and back. `DATA2VEC_PYTHON` names an interpreter
//! that has transformers; `cargo xtask test --python` sets one up.

#![allow(clippy::print_stderr, reason = "a test that was skipped says why")]

use std::path::{Path, PathBuf};
use std::process::Command;

use data2vec_core::checkpoint::{read_tensors, write_tensors};
use data2vec_core::convert::{Exported, ImportOptions, Imported, Model, Source};
use data2vec_core::{
    Batch, Data2Vec, Data2VecConfig, Encoder, FeatureEncoder, Hidden, Mask, Result, Tuned,
};
use data2vec_nlp::{TokenEncoder, Tokenizer};
use data2vec_speech::WaveEncoder;
use data2vec_tests::reference::Tensors;
use data2vec_tests::tiny::{self, FixedMask, difference};
use data2vec_tests::{text, vision};
use data2vec_vision::PatchEncoder;
use ndarray::array;
use tch::{Device, Kind, Tensor};

const TOLERANCE: f64 = 1e-5;
const EXPECTED: &str = "expected.safetensors";

/// The interpreter, or nothing and a word about it.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("DATA2VEC_PYTHON").map(PathBuf::from);
    if python.is_none() {
        eprintln!("skipped: DATA2VEC_PYTHON names no interpreter with transformers");
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
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {said}");
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

/// What the model in `dir` makes of a batch: features of all blocks, and scores if it has a head.
fn outputs<F: FeatureEncoder>(dir: &Path, batch: &Batch) -> (Hidden, Option<Tensor>) {
    if dir.join("head.toml").exists() {
        let tuned = Tuned::<F>::load(dir, Device::Cpu).expect("a model");
        let (scores, hidden) = tuned.forward(batch).expect("a good batch");
        return (hidden, Some(scores));
    }
    let (encoder, _) = Encoder::<F>::load(dir, Device::Cpu).expect("an encoder");
    (encoder.forward(batch).expect("a good batch"), None)
}

/// The model in `dir` gives the outputs in `tensors`.
fn assert_outputs<F: FeatureEncoder>(name: &str, dir: &Path, tensors: &Tensors) {
    let (hidden, scores) = outputs::<F>(dir, &inputs(tensors));
    assert_eq!(hidden.layers.len(), 2);
    for (i, layer) in hidden.layers.iter().enumerate() {
        let expected = &tensors[&format!("hidden.{}", i + 1)];
        let prefix = expected.size()[1] - layer.out.size()[1]; // CLS
        for (row, &len) in hidden.lengths.iter().enumerate() {
            let expected = expected.get(row as i64).narrow(0, prefix, len);
            let off = difference(&layer.out.get(row as i64).narrow(0, 0, len), &expected);
            assert!(off < TOLERANCE, "{name}: block {i}, row {row} is off by {off}");
        }
    }
    assert_eq!(scores.is_some(), tensors.contains_key("logits"), "{name}");
    if let Some(scores) = scores {
        let rows = hidden.lengths.iter().enumerate();
        for (row, &len) in rows.filter(|_| scores.dim() == 3) {
            let cut = |x: &Tensor| x.get(row as i64).narrow(0, 0, len);
            let off = difference(&cut(&scores), &cut(&tensors["logits"]));
            assert!(off < TOLERANCE, "{name}: scores of row {row} are off by {off}");
        }
        if scores.dim() == 2 {
            let off = difference(&scores, &tensors["logits"]);
            assert!(off < TOLERANCE, "{name}: scores are off by {off}");
        }
    }
}

/// Imports the folder `from`, compares, and exports it again to `to`.
fn there_and_back<F>(
    from: &Path,
    to: &Path,
    import: impl Fn(&mut Source) -> Result<Option<Imported<F::Config>>>,
    export: impl Fn(&Model<F::Config>) -> Result<Exported>,
) where
    F: FeatureEncoder,
{
    let name = from.file_name().expect("a name").to_string_lossy().into_owned();
    let mut source = Source::open(from).expect("a folder of transformers");
    let imported = import(&mut source).expect(&name).expect("a known layout");
    let dir = to.parent().expect("a folder").with_file_name("ours").join(&name);
    imported.model.write(&dir).expect("a folder");
    let expected = read_tensors(&from.join(EXPECTED)).expect("outputs");
    assert_outputs::<F>(&name, &dir, &expected);
    let exported = export(&Model::read::<F>(&dir).expect("a model")).expect(&name);
    exported.write(to).expect("a folder");
    std::fs::copy(from.join(EXPECTED), to.join(EXPECTED)).expect("a file");
}

#[test]
fn their_models_here_and_back_there() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let (theirs, back) = (dir.path().join("theirs"), dir.path().join("back"));
    run(&python, "make", &theirs);
    let options = ImportOptions::default();
    for name in ["audio", "audio_ctc", "audio_classifier"] {
        use data2vec_speech::convert::{import, to_hugging_face};
        let import = |source: &mut Source| import(source, &options);
        there_and_back::<WaveEncoder>(
            &theirs.join(name),
            &back.join(name),
            import,
            to_hugging_face,
        );
    }
    for name in ["vision", "vision_classifier", "vision_cls_classifier"] {
        use data2vec_vision::convert::{import, to_hugging_face};
        let import = |source: &mut Source| import(source, &options);
        there_and_back::<PatchEncoder>(
            &theirs.join(name),
            &back.join(name),
            import,
            to_hugging_face,
        );
    }
    for name in ["text", "text_classifier", "text_regression"] {
        use data2vec_nlp::convert::{import, to_hugging_face};
        let import = |source: &mut Source| import(source, &options, None);
        there_and_back::<TokenEncoder>(
            &theirs.join(name),
            &back.join(name),
            import,
            to_hugging_face,
        );
    }
    run(&python, "check", &back);
}

/// A model of 1.0 made here, for transformers in `dir`, with what it makes of `input`. Its own folder is
/// returned.
fn made_here<F: FeatureEncoder>(
    config: Data2VecConfig<F::Config>,
    (input, values): (&str, Tensor),
    dir: &Path,
    export: impl Fn(&Model<F::Config>) -> Result<Exported>,
) -> PathBuf {
    let mask = Mask::new(array![[true, false]]).expect("a mask");
    let model = Data2Vec::<F>::new(config, Box::new(FixedMask(mask)), Device::Cpu, 1);
    let model = model.expect("possible settings");
    for (name, var) in model.vars().variables() {
        let offset = f64::from(u8::from(name.contains("norm") && name.ends_with("weight")));
        // The bias of keys has no effect, and BEiT has none.
        if !(name.ends_with("qkv.bias") && dir.ends_with("vision")) {
            let _ = tch::no_grad(|| var.shallow_clone().normal_(offset, 0.2));
        }
    }
    let own = dir
        .parent()
        .expect("a folder")
        .with_extension("made")
        .join(dir.file_name().expect("a name"));
    model.export(&own).expect("an encoder");
    export(&Model::read::<F>(&own).expect("a model")).expect("1.0").write(dir).expect("a folder");
    let mut tensors: Tensors = [(format!("input.{input}"), values)].into();
    let (hidden, _) = outputs::<F>(&own, &inputs(&tensors));
    let cls = i64::from(hidden.prefix.is_some());
    for (i, layer) in hidden.layers.iter().enumerate() {
        // Hugging Face keeps CLS with the rest; it is not compared.
        let layer = layer.out.constant_pad_nd([0, 0, cls, 0]);
        tensors.insert(format!("hidden.{}", i + 1), layer);
    }
    write_tensors(&dir.join(EXPECTED), &tensors.into_iter().collect()).expect("a file");
    own
}

#[test]
fn our_models_there() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path().join("there");
    tch::manual_seed(1);
    let float = (Kind::Float, Device::Cpu);
    let wave = ("input_values", Tensor::randn([2, 1600], float));
    let to = data2vec_speech::convert::to_hugging_face;
    made_here::<WaveEncoder>(tiny::speech_v1(), wave, &dir.join("audio"), to);
    let image = ("pixel_values", Tensor::randn([2, 3, 32, 32], float));
    let to = data2vec_vision::convert::to_hugging_face;
    made_here::<PatchEncoder>(vision::v1(), image, &dir.join("vision"), to);

    let words = "The same ids, there as here: naïve café, 中文 🙂.\n";
    let tokenizer = Tokenizer::train(std::iter::repeat_n(words, 4), 290).expect("enough text");
    let mut config = text::v1();
    (config.features.vocabulary, config.features.mask) = (290, tokenizer.special().mask);
    let ids = ("input_ids", Tensor::randint(290, [2, 20], (Kind::Int64, Device::Cpu)));
    let to = data2vec_nlp::convert::to_hugging_face;
    // Any id but that of padding, which would not be seen.
    let ids = (ids.0, ids.1.where_self(&ids.1.ne(1), &ids.1.full_like(5)));
    made_here::<TokenEncoder>(config, ids, &dir.join("text"), to);
    data2vec_nlp::convert::save_tokenizer(&tokenizer, &dir.join("text")).expect("files");
    let special = tokenizer.special();
    let around = [vec![special.begin], tokenizer.encode(words).expect("ids"), vec![special.end]];
    let ids: Vec<String> = around.concat().iter().map(i64::to_string).collect();
    std::fs::write(dir.join("text/text.txt"), words).expect("a file");
    std::fs::write(dir.join("text/ids.txt"), ids.join(" ")).expect("a file");
    run(&python, "check", &dir);
}
