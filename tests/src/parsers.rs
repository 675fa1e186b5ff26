//! Parsers of untrusted files, each as a function of bytes, for mutation tests and `cargo fuzz`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use data2vec_core::io::checkpoint::read_tensors;
use data2vec_core::model::encoder::read_config;
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Checkpoints, Dataset, HeadTask, io::pickle};
use data2vec_nlp::{LabelledTextConfig, LabelledTexts, TextDataConfig, TextDataset, Tokenizer};
use data2vec_source::{Source, SourceConfig};
use data2vec_speech::lm::LanguageModel;
use data2vec_speech::{LabelledSpeech, LabelledSpeechConfig, SpeechDataConfig, SpeechDataset};
use data2vec_speech::{WaveEncoder, WaveEncoderConfig};
use data2vec_vision::{PatchEncoderConfig, Positions, VisionDataConfig, VisionDataset};
use serde::de::DeserializeOwned;

/// Names of all parsers; `fuzz/corpus` has a directory for each.
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

/// Parses bytes; returns true if they are valid.
pub type Parser = Box<dyn FnMut(&[u8]) -> bool>;

/// Parses bytes, with a directory for temporary files.
type ParserInDir = Box<dyn Fn(&Path, &[u8]) -> bool>;

/// Returns the parser `name`.
///
/// # Panics
/// Panics if it does not exist.
pub fn parser(name: &str) -> Parser {
    let dir = tempfile::tempdir().expect("a directory");
    let parse: ParserInDir = match name {
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
    Box::new(move |bytes| parse(dir.path(), bytes))
}

/// Writes `bytes` to a file in `dir` and returns its path.
fn write(dir: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = dir.join(name);
    // A new file each time: overwriting waits for the disk on some systems.
    let _ = fs::remove_file(&path);
    fs::write(&path, bytes).expect("written");
    path
}

/// Deserializes settings from TOML.
fn settings<T: DeserializeOwned>(toml: &str) -> T {
    toml::from_str(toml).expect("valid settings")
}

fn language_model(dir: &Path, bytes: &[u8]) -> bool {
    let Ok(model) = LanguageModel::load(write(dir, "model", bytes)) else { return false };
    let score = model.sentence("the people of a state and the law", true, true);
    assert!(!score.is_nan());
    true
}

/// Parses `checkpoint.json`, next to a file that it may list.
fn checkpoint(dir: &Path, bytes: &[u8]) -> bool {
    let checkpoints = Checkpoints::new(dir, 1, None).expect("a directory");
    let step = dir.join("step-00000001");
    fs::create_dir_all(&step).expect("written");
    write(&step, "model.safetensors", b"weights");
    write(&step, "checkpoint.json", bytes);
    let newest = checkpoints.newest_up_to(u64::MAX).expect("a directory");
    assert_eq!(newest.good.is_none(), !newest.damaged.is_empty());
    newest.good.is_some()
}

fn dictionary(dir: &Path, bytes: &[u8]) -> bool {
    if !dir.join("encoder.json").exists() {
        let trained = Tokenizer::train(["a"].into_iter(), 261).expect("enough text");
        trained.save_json(dir.join("trained.json")).expect("written");
        let text = fs::read(dir.join("trained.json")).expect("a file");
        let trained: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let vocabulary: serde_json::Map<_, _> = trained["model"]["vocab"]
            .as_object()
            .expect("a vocabulary")
            .iter()
            .filter(|(token, _)| token.chars().count() == 1)
            .enumerate()
            .map(|(id, (token, _))| (token.clone(), id.into()))
            .collect();
        write(dir, "encoder.json", &serde_json::to_vec(&vocabulary).expect("JSON"));
        write(dir, "vocab.bpe", b"#version: 0.2\n");
    }
    write(dir, "dict.txt", bytes);
    let Ok(tokenizer) = Tokenizer::load(dir) else { return false };
    let ids = tokenizer.encode("a text").expect("text");
    assert!(ids.iter().all(|&id| id < tokenizer.vocab_size()));
    true
}

fn encoder(dir: &Path, bytes: &[u8]) -> bool {
    write(dir, "encoder.toml", bytes);
    read_config::<WaveEncoder>(dir).is_ok()
}

fn idx(dir: &Path, bytes: &[u8]) -> bool {
    let path = write(dir, "train-images-idx3-ubyte", bytes);
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
    let Ok(dataset) = VisionDataset::open(path, &config, &features, None) else { return false };
    let mut rng = stream(1, Purpose::Step, &[0]);
    dataset.load(dataset.len() - 1, &mut rng).is_ok()
}

fn manifest(dir: &Path, bytes: &[u8]) -> bool {
    let path = write(dir, "train.tsv", bytes);
    let config: SpeechDataConfig =
        settings("min_seconds = 0.1\nmax_seconds = 20.0\nbatching = \"crop\"");
    let Ok(dataset) = SpeechDataset::open(path, &config, None) else { return false };
    let total: u64 = (0..dataset.len()).map(|at| dataset.size(at)).sum();
    total > 0
}

fn pickle(dir: &Path, bytes: &[u8]) -> bool {
    let path = write(dir, "model.pt", bytes);
    let Ok(saved) = pickle::read(&path) else { return false };
    let _ = saved.root().to_json();
    saved.tensors(saved.state_dict()).is_ok()
}

fn safetensors(dir: &Path, bytes: &[u8]) -> bool {
    read_tensors(&write(dir, "model.safetensors", bytes)).is_ok()
}

/// Reads a shard; the first byte selects its format.
fn shard(dir: &Path, bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else { return false };
    let name = ["a.tar", "a.jsonl", "a.tar.gz", "a.jsonl.gz"][usize::from(kind % 4)];
    let path = write(dir, name, bytes);
    let config = SourceConfig {
        shards: vec![path.display().to_string()],
        cache_bytes: 1 << 24,
        ..SourceConfig::default()
    };
    let Ok(source) = Source::open(&config, &dir.join("cache"), &mut |_| ()) else {
        return false;
    };
    let read = |index: usize| {
        let fields = source.fields(index).expect("a valid index");
        source.read(index).is_ok_and(|example| example.fields.len() <= fields.len())
    };
    // Read every one: an invalid example must not be skipped after a valid one.
    let valid: Vec<bool> = (0..source.len().min(100)).map(read).collect();
    read(source.len() - 1) | valid.contains(&true)
}

/// Reads labelled texts; the first byte selects the format.
fn table() -> ParserInDir {
    let tokenizer = Arc::new(Tokenizer::train(["a"].into_iter(), 261).expect("enough text"));
    let config = LabelledTextConfig { max_tokens: 16 };
    Box::new(move |dir, bytes| {
        let Some((kind, bytes)) = bytes.split_first() else { return false };
        let name = ["train.tsv", "train.jsonl", "mr_groundtruth.txt", "train.tsv.gz"]
            [usize::from(kind % 4)];
        let path = write(dir, name, bytes);
        let mut valid = false;
        for task in [HeadTask::Classification, HeadTask::Regression] {
            let opened = LabelledTexts::open(&path, &config, task, tokenizer.clone(), None);
            if let Ok(texts) = opened {
                let mut rng = stream(1, Purpose::Step, &[0]);
                valid |= texts.load(texts.len() - 1, &mut rng).is_ok();
                let _ = texts.skipped();
            }
        }
        valid
    })
}

/// Reads pretraining texts; the first byte selects the format.
fn text(dir: &Path, bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else { return false };
    let tokenizer = dir.join("tokenizer.json");
    if !tokenizer.exists() {
        let trained = Tokenizer::train(["a"].into_iter(), 261).expect("enough text");
        trained.save_json(&tokenizer).expect("written");
    }
    let (texts, cache) = (dir.join("texts"), dir.join("cache"));
    for dir in [&texts, &cache] {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir(dir).expect("written");
    }
    write(&texts, ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz"][usize::from(kind % 4)], bytes);
    let toml = format!(
        "tokenizer = {{ file = {tokenizer:?} }}\nblock = 16\npacking = \"lines\"\n\
         documents = \"blank_line\"\njson_key = \"text\"\ninvalid_utf8 = \"replace\""
    );
    let config: TextDataConfig = settings(&toml);
    TextDataset::open(&texts, &config, &cache, &mut |_| ()).is_ok_and(|data| !data.is_empty())
}

fn tokenizer(dir: &Path, bytes: &[u8]) -> bool {
    let Ok(tokenizer) = Tokenizer::load(write(dir, "tokenizer.json", bytes)) else {
        return false;
    };
    tokenizer.encode("The people of a state.").is_ok()
}

/// Reads the transcripts of three recordings; the first byte selects the format.
fn transcripts(dir: &Path, bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else { return false };
    write(dir, "train.tsv", b".\na/0.wav\t16000\na/1.wav\t20000\na/2.wav\t24000\n");
    let name =
        ["train.ltr", "train.wrd", "a/b.trans.txt", "table.tsv", "a/0.txt"][usize::from(kind % 5)];
    fs::create_dir_all(dir.join("a")).expect("written");
    let table = write(dir, name, bytes);
    let config: LabelledSpeechConfig = settings("label = \"text\"");
    let features: WaveEncoderConfig = crate::tiny::speech_v1().features;
    let opened = LabelledSpeech::open(dir.join("train.tsv"), &config, &features, None);
    fs::remove_file(table).expect("a file");
    let Ok(dataset) = opened else { return false };
    dataset.labels().is_ok()
}
