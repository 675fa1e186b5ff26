//! What reads files that others wrote, each as a function of bytes: for mutations of good files, and for
//! the targets of `cargo fuzz`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use data2vec_core::checkpoint::read_tensors;
use data2vec_core::encoder::read_config;
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Checkpoints, Dataset, HeadTask, pickle};
use data2vec_nlp::{LabelledTextConfig, LabelledTexts, TextDataConfig, TextDataset, Tokenizer};
use data2vec_source::{Source, SourceConfig};
use data2vec_speech::lm::LanguageModel;
use data2vec_speech::{LabelledSpeech, LabelledSpeechConfig, SpeechDataConfig, SpeechDataset};
use data2vec_speech::{WaveEncoder, WaveEncoderConfig};
use data2vec_vision::{PatchEncoderConfig, Positions, VisionDataConfig, VisionDataset};
use serde::de::DeserializeOwned;

/// Names of all parsers: `fuzz/corpus` has a folder for each.
pub const NAMES: [&str; 14] = [
    "arpa",
    "checkpoint",
    "dictionary",
    "encoder",
    "idx",
    "kenlm",
    "manifest",
    "pickle",
    "safetensors",
    "shard",
    "table",
    "text",
    "tokenizer",
    "transcripts",
];

/// Says whether it could use the bytes.
pub type Parser = Box<dyn FnMut(&[u8]) -> bool>;

/// The same, with a folder to put them in.
type InFolder = Box<dyn Fn(&Path, &[u8]) -> bool>;

/// The parser of a name.
///
/// # Panics
/// If there is none of that name.
pub fn parser(name: &str) -> Parser {
    let folder = tempfile::tempdir().expect("space");
    let parse: InFolder = match name {
        "arpa" | "kenlm" => Box::new(language_model),
        "checkpoint" => Box::new(checkpoint),
        "dictionary" => Box::new(dictionary),
        "encoder" => Box::new(encoder),
        "idx" => Box::new(idx),
        "manifest" => Box::new(manifest),
        "pickle" => Box::new(pickle),
        "safetensors" => Box::new(safetensors),
        "shard" => Box::new(shard),
        "table" => table(),
        "text" => Box::new(text),
        "tokenizer" => Box::new(tokenizer),
        "transcripts" => Box::new(transcripts),
        _ => panic!("no parser {name}"),
    };
    Box::new(move |bytes| parse(folder.path(), bytes))
}

/// A file in `folder` with these bytes.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    // A new file each time: to write over one, some systems wait for the disk.
    let _ = fs::remove_file(&path);
    fs::write(&path, bytes).expect("space");
    path
}

/// Settings of which all have a default, but for those told.
fn settings<T: DeserializeOwned>(told: &str) -> T {
    toml::from_str(told).expect("settings")
}

fn language_model(folder: &Path, bytes: &[u8]) -> bool {
    let Ok(model) = LanguageModel::load(write(folder, "model", bytes)) else { return false };
    let score = model.sentence("the people of a state and the law", true, true);
    assert!(!score.is_nan());
    true
}

/// `checkpoint.json`, beside a file that it may tell of.
fn checkpoint(folder: &Path, bytes: &[u8]) -> bool {
    let checkpoints = Checkpoints::new(folder, 1, None).expect("a folder");
    let step = folder.join("step-00000001");
    fs::create_dir_all(&step).expect("space");
    write(&step, "model.safetensors", b"weights");
    write(&step, "checkpoint.json", bytes);
    let newest = checkpoints.newest().expect("a folder");
    assert_eq!(newest.good.is_none(), !newest.damaged.is_empty());
    newest.good.is_some()
}

fn dictionary(folder: &Path, bytes: &[u8]) -> bool {
    if !folder.join("encoder.json").exists() {
        let trained = Tokenizer::train(["a"].into_iter(), 261).expect("enough text");
        trained.save_json(folder.join("whole.json")).expect("space");
        let text = fs::read(folder.join("whole.json")).expect("a file");
        let whole: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let vocabulary: serde_json::Map<_, _> = whole["model"]["vocab"]
            .as_object()
            .expect("a vocabulary")
            .iter()
            .filter(|(token, _)| token.chars().count() == 1)
            .enumerate()
            .map(|(id, (token, _))| (token.clone(), id.into()))
            .collect();
        write(folder, "encoder.json", &serde_json::to_vec(&vocabulary).expect("JSON"));
        write(folder, "vocab.bpe", b"#version: 0.2\n");
    }
    write(folder, "dict.txt", bytes);
    let Ok(tokenizer) = Tokenizer::load(folder) else { return false };
    let ids = tokenizer.encode("a text").expect("text");
    assert!(ids.iter().all(|&id| id < tokenizer.vocabulary()));
    true
}

fn encoder(folder: &Path, bytes: &[u8]) -> bool {
    write(folder, "encoder.toml", bytes);
    read_config::<WaveEncoder>(folder).is_ok()
}

fn idx(folder: &Path, bytes: &[u8]) -> bool {
    let path = write(folder, "train-images-idx3-ubyte", bytes);
    let features = PatchEncoderConfig {
        image_size: [8, 8],
        channels: 1,
        mean: vec![0.5],
        std: vec![0.5],
        patch_size: 4,
        positions: Positions::SinCos,
    };
    let config: VisionDataConfig =
        settings("crop_scale = [0.2, 1.0]\ncrop_ratio = [0.75, 1.33]\nflip = 0.5");
    let Ok(images) = VisionDataset::open(path, &config, &features, None) else { return false };
    let mut rng = stream(1, Purpose::Step, &[0]);
    images.load(images.len() - 1, &mut rng).is_ok()
}

fn manifest(folder: &Path, bytes: &[u8]) -> bool {
    let path = write(folder, "train.tsv", bytes);
    let config: SpeechDataConfig =
        settings("min_seconds = 0.1\nmax_seconds = 20.0\nbatching = \"crop\"");
    let Ok(recordings) = SpeechDataset::open(path, &config, None) else { return false };
    let total: u64 = (0..recordings.len()).map(|at| recordings.size(at)).sum();
    total > 0
}

fn pickle(folder: &Path, bytes: &[u8]) -> bool {
    let path = write(folder, "model.pt", bytes);
    let Ok(saved) = pickle::read(&path) else { return false };
    let _ = saved.root().to_json();
    saved.tensors(saved.state_dict()).is_ok()
}

fn safetensors(folder: &Path, bytes: &[u8]) -> bool {
    read_tensors(&write(folder, "model.safetensors", bytes)).is_ok()
}

/// The first byte tells which kind of shard it is.
fn shard(folder: &Path, bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else { return false };
    let name = ["a.tar", "a.jsonl", "a.tar.gz", "a.jsonl.gz"][usize::from(kind % 4)];
    let path = write(folder, name, bytes);
    let config = SourceConfig {
        shards: vec![path.display().to_string()],
        cache_bytes: 1 << 24,
        ..SourceConfig::default()
    };
    let Ok(source) = Source::open(&config, &folder.join("cache"), &mut |_| ()) else {
        return false;
    };
    let read = |index: usize| {
        let fields = source.fields(index).expect("a good index");
        source.read(index).is_ok_and(|example| example.fields.len() <= fields.len())
    };
    // Each, so that none hides behind a good one.
    let good: Vec<bool> = (0..source.len().min(100)).map(read).collect();
    read(source.len() - 1) | good.contains(&true)
}

/// The first byte tells which kind of file it is.
fn table() -> InFolder {
    let tokenizer = Arc::new(Tokenizer::train(["a"].into_iter(), 261).expect("enough text"));
    let config = LabelledTextConfig { max_tokens: 16 };
    Box::new(move |folder, bytes| {
        let Some((kind, bytes)) = bytes.split_first() else { return false };
        let name = ["train.tsv", "train.jsonl", "mr_groundtruth.txt", "train.tsv.gz"]
            [usize::from(kind % 4)];
        let path = write(folder, name, bytes);
        let mut of_use = false;
        for task in [HeadTask::Classification, HeadTask::Regression] {
            let opened = LabelledTexts::open(&path, &config, task, tokenizer.clone(), None);
            if let Ok(texts) = opened {
                let mut rng = stream(1, Purpose::Step, &[0]);
                of_use |= texts.load(texts.len() - 1, &mut rng).is_ok();
                let _ = texts.skipped();
            }
        }
        of_use
    })
}

/// Texts to train on; the first byte tells which kind of file they are in.
fn text(folder: &Path, bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else { return false };
    let tokenizer = folder.join("tokenizer.json");
    if !tokenizer.exists() {
        let trained = Tokenizer::train(["a"].into_iter(), 261).expect("enough text");
        trained.save_json(&tokenizer).expect("space");
    }
    let (texts, cache) = (folder.join("texts"), folder.join("cache"));
    for folder in [&texts, &cache] {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir(folder).expect("space");
    }
    write(&texts, ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz"][usize::from(kind % 4)], bytes);
    let told = format!(
        "tokenizer = {{ file = {tokenizer:?} }}\nblock = 16\npacking = \"lines\"\n\
         documents = \"blank_line\"\njson_key = \"text\"\ninvalid_utf8 = \"replace\""
    );
    let config: TextDataConfig = settings(&told);
    TextDataset::open(&texts, &config, &cache, &mut |_| ()).is_ok_and(|data| !data.is_empty())
}

fn tokenizer(folder: &Path, bytes: &[u8]) -> bool {
    let Ok(tokenizer) = Tokenizer::load(write(folder, "tokenizer.json", bytes)) else {
        return false;
    };
    tokenizer.encode("The people of a state.").is_ok()
}

/// The first byte tells in which kind of file the texts of three recordings are.
fn transcripts(folder: &Path, bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else { return false };
    write(folder, "train.tsv", b".\na/0.wav\t16000\na/1.wav\t20000\na/2.wav\t24000\n");
    let name = [
        "train.ltr",
        "train.wrd",
        "a/b.trans.txt",
        "en-sounds-x.txt",
        "a/b.transcription",
        "table.tsv",
        "a/0.txt",
        "script/a/dialogs_en.lua",
    ][usize::from(kind % 8)];
    for folder in [folder.join("a"), folder.join("script/a")] {
        fs::create_dir_all(folder).expect("space");
    }
    let told = write(folder, name, bytes);
    let config: LabelledSpeechConfig = settings("label = \"text\"");
    let features: WaveEncoderConfig = crate::tiny::speech_v1().features;
    let opened = LabelledSpeech::open(folder.join("train.tsv"), &config, &features, None);
    fs::remove_file(told).expect("a file");
    let Ok(recordings) = opened else { return false };
    recordings.labels().is_ok()
}
