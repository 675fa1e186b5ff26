//! Imports checkpoints of fairseq and the BEiT fork, and round-trips every checkpoint layout.
//!
//! `goldens/make_fairseq.py` generates the files.

use std::path::{Path, PathBuf};

use data2vec_core::io::convert::{ExportedModel, ImportOptions, Imported, Model, Source};
use data2vec_core::model::head::{Activation, DenseConfig, HeadConfig, HeadInit, HeadTask, Pool};
use data2vec_core::{Batch, Encoder, EncoderConfig, EncoderOutput, FeatureEncoder, Result};
use data2vec_core::{FinetunedModel, Tokens, TransformerConfig};
use data2vec_nlp::{TokenEncoder, TokenEncoderConfig};
use data2vec_speech::{WaveEncoder, WaveEncoderConfig};
use data2vec_tests::parity::Goldens;
use data2vec_tests::reference::SpeechV1;
use data2vec_tests::text::TextV2;
use data2vec_tests::tiny::{self, max_abs_diff};
use data2vec_tests::vision::Reference;
use data2vec_tests::{text, vision};
use data2vec_vision::{PatchEncoder, PatchEncoderConfig, Positions};
use tch::{Device, Kind, Tensor, nn};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(name)
}

fn options(teacher: bool) -> ImportOptions {
    ImportOptions { teacher, ..ImportOptions::default() }
}

fn speech(source: &mut Source, o: &ImportOptions) -> Result<Option<Imported<WaveEncoderConfig>>> {
    data2vec_speech::convert::import(source, o)
}

fn images(source: &mut Source, o: &ImportOptions) -> Result<Option<Imported<PatchEncoderConfig>>> {
    data2vec_vision::convert::import(source, o)
}

fn texts(source: &mut Source, o: &ImportOptions) -> Result<Option<Imported<TokenEncoderConfig>>> {
    data2vec_nlp::convert::import(source, o, None)
}

type Import<C> = fn(&mut Source, &ImportOptions) -> Result<Option<Imported<C>>>;
type Export<C> = fn(&Model<C>) -> Result<ExportedModel>;

fn import<C>(name: &str, teacher: bool, import: Import<C>) -> Imported<C> {
    let mut source = Source::open(&file(name)).expect("a checkpoint");
    import(&mut source, &options(teacher)).expect(name).expect("a known layout")
}

/// Writes the imported model and loads its encoder.
fn encoder<F: FeatureEncoder>(imported: &Imported<F::Config>) -> Encoder<F> {
    let dir = tempfile::tempdir().expect("a directory");
    imported.model.write(dir.path()).expect("written");
    Encoder::load(dir.path(), Device::Cpu).expect("an encoder").0
}

fn forward<F: FeatureEncoder>(imported: &Imported<F::Config>, inputs: &Tensor) -> EncoderOutput {
    let batch = Batch::new(inputs.shallow_clone()).expect("a batch");
    encoder::<F>(imported).forward(&batch).expect("a valid batch")
}

#[test]
fn imports_fairseq_speech() {
    let goldens = Goldens::new("v1_audio", SpeechV1, 26.0);
    let inputs = &goldens.forward["input.source"];
    let teacher = import("fairseq_v1_audio.pt", true, speech);
    assert!(!teacher.model.config.features.normalize, "read from OmegaConf's containers");
    assert_eq!(teacher.model.config.transformer.heads, 4);
    assert_eq!(teacher.model.config.transformer.layer_drop, 0.05);
    for (i, layer) in forward::<WaveEncoder>(&teacher, inputs).layers.iter().enumerate() {
        let theirs = goldens.intermediate(&format!("teacher.layers.{i}.0")); // (T, B, D), T padded to even
        goldens.assert_value("teacher", &layer.out, &theirs.narrow(0, 0, 39).transpose(0, 1));
    }

    let student = import("fairseq_v1_audio.pt", false, speech);
    let left_out = &student.report.left_out;
    assert!(left_out.iter().any(|name| name == "final_proj.weight"), "{left_out:?}");
    assert!(left_out.iter().any(|name| name == "_ema.layers.0.fc1.weight"), "{left_out:?}");
    let encoder = encoder::<WaveEncoder>(&student);
    let batch = Batch::new(inputs.shallow_clone()).expect("a batch");
    let tokens = encoder.embed(&batch, false).expect("long enough");
    let is_masked = goldens.mask().to_tensor(Device::Cpu).unsqueeze(-1);
    let mask_token = student.model.mask_token.as_ref().expect("a mask token");
    let masked = Tokens::new(mask_token.where_self(&is_masked, &tokens.x), None);
    let layers = encoder.contextualize(&masked, None, None).expect("positions").layers;
    for (i, layer) in layers.iter().enumerate() {
        let theirs = goldens.intermediate(&format!("student.encoder.layers.{i}.0"));
        goldens.assert_value("student", &layer.out, &theirs.narrow(0, 0, 39).transpose(0, 1));
    }
}

#[test]
fn imports_fairseq_images() {
    let goldens = Goldens::new("v2_image", Reference::V2, 72.0);
    let teacher = import("fairseq_v2_image.pt", true, images);
    let config = &teacher.model.config;
    assert_eq!((config.features.image_size, config.transformer.depth), ([32, 32], 4));
    let output = forward::<PatchEncoder>(&teacher, &goldens.forward["input.source"]);
    for (i, layer) in output.layers.iter().enumerate() {
        let name = match i.checked_sub(1) {
            None => "teacher.modality_encoders.IMAGE.context_encoder.blocks.0.0".to_owned(),
            Some(i) => format!("teacher.blocks.{i}.0"),
        };
        goldens.assert_value(&name, &layer.out, &goldens.intermediate(&name).narrow(1, 1, 16));
    }
    // The CLS token is the prefix, not a patch.
    let cls = goldens.intermediate("teacher.blocks.2.0").narrow(1, 0, 1);
    goldens.assert_value("CLS", &output.prefix.expect("CLS"), &cls);
}

#[test]
fn imports_beit_images() {
    let goldens = Goldens::new("v1_image", Reference::V1, 1.0);
    let teacher = import("beit_v1_image.pth", true, images);
    assert_eq!(teacher.model.config.features.positions, Positions::Relative);
    assert!(teacher.model.mask_token.is_some());
    let output = forward::<PatchEncoder>(&teacher, &goldens.forward["input.img"]);
    for (i, layer) in output.layers.iter().enumerate() {
        let theirs = goldens.intermediate(&format!("teacher.blocks.{i}.0"));
        goldens.assert_value("teacher", &layer.out, &theirs.narrow(1, 1, 16));
    }
    let student = import("beit_v1_image.pth", false, images);
    let name = "encoder.transformer.blocks.0.mlp.fc1.weight";
    assert!(max_abs_diff(&student.model.vars[name], &teacher.model.vars[name]) > 1e-4);
}

#[test]
fn imports_fairseq_text() {
    let goldens = Goldens::new("v2_text", TextV2, 81.0);
    let teacher = import("fairseq_v2_text.pt", true, texts);
    assert!(teacher.model.config.features.early_positions);
    let output = forward::<TokenEncoder>(&teacher, &goldens.forward["input.source"]);
    assert_eq!(output.layers.len(), 3);
    for (i, layer) in output.layers.iter().enumerate() {
        goldens.assert_value(
            "teacher",
            &layer.out,
            &goldens.intermediate(&format!("teacher.{i}.0")),
        );
    }
}

/// Creates a model with random weights.
fn model<F: FeatureEncoder>(
    features: F::Config,
    transformer: TransformerConfig,
    head: Option<HeadConfig>,
    mask_token: bool,
) -> Model<F::Config> {
    let store = nn::VarStore::new(Device::Cpu);
    let dim = transformer.dim;
    let config = EncoderConfig { encoder: F::NAME.to_owned(), features, transformer };
    match &head {
        Some(head) => {
            FinetunedModel::<F>::new(&store.root(), config.clone(), head.clone())
                .expect("a valid config");
        }
        None => {
            let path = store.root() / "encoder";
            Encoder::<F>::new(&path, &config.features, &config.transformer)
                .expect("a valid config");
        }
    }
    let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
    let vars = store.variables().into_iter().map(|(name, var)| (name, random(&var.size())));
    let mask_token = mask_token.then(|| random(&[dim]));
    Model { config, head, vars: vars.collect(), mask_token }
}

/// Asserts that `import` restores what `export` writes.
fn assert_round_trip<C>(
    what: &str,
    model: &Model<C>,
    export: Export<C>,
    import: Import<C>,
    labels: Option<&str>,
) -> Imported<C> {
    let dir = tempfile::tempdir().expect("a directory");
    export(model).expect(what).write(dir.path()).expect("written");
    let labels = labels.map(|text| {
        let path = dir.path().join("labels");
        std::fs::write(&path, text).expect("written");
        path
    });
    let options = ImportOptions { heads: Some(4), labels, ..ImportOptions::default() };
    let mut source = Source::open(dir.path()).expect("an export");
    let back = import(&mut source, &options).expect(what).expect("a known layout");
    assert_eq!(back.model.head.is_some(), model.head.is_some(), "{what}");
    if let (Some(theirs), Some(ours)) = (&back.model.head, &model.head) {
        assert_eq!((theirs.task, theirs.pool, &theirs.dense), (ours.task, ours.pool, &ours.dense));
        assert_eq!(theirs.labels, ours.labels, "{what}");
    }
    assert_eq!(back.model.mask_token.is_some(), model.mask_token.is_some(), "{what}");
    let (theirs, ours) = (back.model.all_vars(), model.all_vars());
    assert_eq!(theirs.len(), ours.len(), "{what}");
    for (name, value) in ours {
        let diff = max_abs_diff(&theirs[&name], &value);
        assert_eq!(diff, 0.0, "{what}: {name}");
    }
    back
}

fn head(task: HeadTask, pool: Pool, labels: &[&str]) -> HeadConfig {
    HeadConfig {
        task,
        pool,
        norm_eps: None,
        dropout: 0.0,
        init: HeadInit::Torch,
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        dense: None,
    }
}

#[test]
fn speech_layouts_round_trip() {
    use data2vec_speech::convert::{to_fairseq, to_hugging_face};
    let labels = ["<pad>", "<s>", "</s>", "<unk>", "|", "ä", "b"];
    let (v1, v2) = (tiny::speech_v1(), tiny::speech_v2());
    let ctc = head(HeadTask::Ctc, Pool::None, &labels);
    let mut classes = head(HeadTask::Classification, Pool::Mean, &["no", "yes"]);
    classes.dense = Some(DenseConfig { dim: 24, activation: Activation::None });
    let dictionary = Some("| 9\nä 5\nb 1\n");
    for (head, labels) in [(None, None), (Some(ctc.clone()), dictionary), (Some(classes), None)] {
        let model = model::<WaveEncoder>(v1.features.clone(), v1.transformer.clone(), head, true);
        let is_ctc = model.head.as_ref().is_none_or(|head| head.task == HeadTask::Ctc);
        assert_round_trip("native", &model, Model::to_native, speech, None);
        assert_round_trip("Hugging Face", &model, to_hugging_face, speech, None);
        match is_ctc {
            true => drop(assert_round_trip("fairseq 1", &model, to_fairseq, speech, labels)),
            false => assert!(to_fairseq(&model).unwrap_err().to_string().contains("safetensors")),
        }
    }
    for (head, labels) in [(None, None), (Some(ctc), dictionary)] {
        let model = model::<WaveEncoder>(v2.features.clone(), v2.transformer.clone(), head, false);
        assert_round_trip("fairseq 2", &model, to_fairseq, speech, labels);
        let error = to_hugging_face(&model).unwrap_err().to_string();
        assert!(error.contains("transformers supports only data2vec 1.0"), "{error}");
        assert!(error.contains("--to fairseq or --to safetensors"), "{error}");
    }
}

#[test]
fn image_layouts_round_trip() {
    use data2vec_vision::convert::{to_fairseq, to_hugging_face};
    let (v1, v2) = (vision::v1(), vision::v2());
    let mut classes = head(HeadTask::Classification, Pool::Mean, &["0", "1", "2"]);
    classes.norm_eps = Some(1e-6);
    let cls = HeadConfig { pool: Pool::Prefix, ..classes.clone() };
    for head in [None, Some(classes.clone()), Some(cls)] {
        for positions in [Positions::Relative, Positions::RelativeBlocks] {
            let features = PatchEncoderConfig { positions, ..v1.features.clone() };
            let mask_token = head.is_none();
            let mut model =
                model::<PatchEncoder>(features, v1.transformer.clone(), head.clone(), mask_token);
            // BEiT has no key bias; ours has no effect.
            for (name, value) in &model.vars {
                if name.ends_with("qkv.bias") {
                    let _ = value.narrow(0, 48, 48).fill_(0.0);
                }
            }
            let all = [("HF", to_hugging_face as Export<_>), ("BEiT", to_fairseq)];
            for (what, export) in all.into_iter().chain([("native", Model::to_native as Export<_>)])
            {
                let back = assert_round_trip(what, &model, export, images, None);
                assert_eq!(back.model.config.features.positions, positions);
            }
            model.config.transformer.norm_eps = 1e-5;
            assert_eq!(to_hugging_face(&model).is_err(), head.is_some());
        }
    }
    for head in [None, Some(classes)] {
        let model = model::<PatchEncoder>(v2.features.clone(), v2.transformer.clone(), head, false);
        assert_round_trip("fairseq 2", &model, to_fairseq, images, None);
        assert!(to_hugging_face(&model).unwrap_err().to_string().contains("only data2vec 1.0"));
    }
}

#[test]
fn text_layouts_round_trip() {
    use data2vec_nlp::convert::{to_fairseq, to_hugging_face};
    let mut classes = head(HeadTask::Classification, Pool::First, &["0", "1"]);
    classes.dense = Some(DenseConfig { dim: 48, activation: Activation::Tanh });
    let mut number = HeadConfig { task: HeadTask::Regression, ..classes.clone() };
    number.labels = vec!["0".into()];
    for config in [text::v1(), text::v2()] {
        for head in [None, Some(classes.clone()), Some(number.clone())] {
            let (features, transformer) = (config.features.clone(), config.transformer.clone());
            let model = model::<TokenEncoder>(features, transformer, head, false);
            assert_round_trip("native", &model, Model::to_native, texts, None);
            assert_round_trip("fairseq", &model, to_fairseq, texts, None);
            assert_round_trip("Hugging Face", &model, to_hugging_face, texts, None);
        }
    }
}

#[test]
fn missing_or_invalid_tensors_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = tiny::speech_v1();
    let model = model::<WaveEncoder>(config.features, config.transformer, None, true);
    let exported = data2vec_speech::convert::to_hugging_face(&model).expect("1.0");
    let name = "encoder.layers.2.attention.k_proj.bias";
    let error_of = |change: &dyn Fn(&mut ExportedModel)| {
        let mut exported = ExportedModel {
            tensors: exported.tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect(),
            files: exported.files.clone(),
            ..ExportedModel::default()
        };
        change(&mut exported);
        exported.write(dir.path()).expect("written");
        let mut source = Source::open(dir.path()).expect("tensors");
        speech(&mut source, &options(false)).expect_err("invalid").to_string()
    };
    let text = error_of(&|e| {
        let bias = e.tensors.remove(name).expect("a bias");
        e.tensors.insert("encoder.layers.2.attention.k_proj.bais".into(), bias);
    });
    assert!(text.contains(&format!("`{name}`: is missing")), "{text}");
    assert!(
        text.contains("most similar names are `encoder.layers.2.attention.k_proj.bais`"),
        "{text}"
    );
    let text = error_of(&|e| {
        e.metadata.insert("encoder".into(), "encoder = \"wave\"\nfeatures = 3".into());
    });
    assert!(text.contains("metadata entry `encoder` is invalid"), "{text}");
    let text = error_of(&|e| {
        e.tensors.insert(name.into(), Tensor::zeros([7], (Kind::Float, Device::Cpu)));
    });
    assert!(text.contains(&format!("`{name}`: has shape [7], not [48]")), "{text}");
}

#[test]
fn sharded_weights_equal_a_single_file() {
    let config = tiny::speech_v1();
    let model = model::<WaveEncoder>(config.features, config.transformer, None, true);
    let exported = data2vec_speech::convert::to_hugging_face(&model).expect("1.0");
    let [single_dir, sharded_dir] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    exported.write(single_dir.path()).expect("written");
    let mut map = serde_json::Map::new();
    let names: Vec<&String> = exported.tensors.keys().collect();
    for (i, names) in names.chunks(names.len() / 2 + 1).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        let part = names.iter().map(|&name| (name.clone(), exported.tensors[name].shallow_clone()));
        let files = exported.files.clone();
        let part = ExportedModel { tensors: part.collect(), files, ..ExportedModel::default() };
        part.write(sharded_dir.path()).expect("written");
        std::fs::rename(
            sharded_dir.path().join("model.safetensors"),
            sharded_dir.path().join(&file),
        )
        .expect("a shard");
        map.extend(names.iter().map(|&name| (name.clone(), file.clone().into())));
    }
    let index = sharded_dir.path().join("model.safetensors.index.json");
    let write = |map| std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string());
    write(map.clone()).expect("written");

    let read = |dir: &Path| -> Result<Imported<WaveEncoderConfig>> {
        Ok(speech(&mut Source::open(dir)?, &options(false))?.expect("a known layout"))
    };
    let [single, sharded] =
        [single_dir.path(), sharded_dir.path()].map(|dir| read(dir).expect("weights"));
    assert_eq!(single.model.config, sharded.model.config);
    for (name, tensor) in &single.model.vars {
        assert!(tensor == &sharded.model.vars[name], "{name}");
    }

    let error_of = |map| {
        write(map).expect("written");
        read(sharded_dir.path()).expect_err("an invalid index").to_string()
    };
    let mut outside = map.clone();
    outside.insert("x".into(), "../model.safetensors".into());
    assert!(error_of(outside).contains("not in the same directory"));
    assert!(error_of(serde_json::Map::new()).contains("lists no files"));
    map.insert("x".into(), "model-00003-of-00002.safetensors".into());
    assert!(error_of(map).contains("model-00003-of-00002.safetensors"));
}
