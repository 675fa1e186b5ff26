//! What several tests need. Each uses a part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data2vec_source::{Example, Result, Source, SourceConfig, Value};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// What Python read of an example, bytes and texts as digests: see `fixtures/make.py`.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Told {
    pub key: String,
    pub fields: BTreeMap<String, serde_json::Value>,
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// What Python read of each file.
pub fn expected() -> BTreeMap<String, Vec<Told>> {
    let text = std::fs::read_to_string(fixture("expected.json")).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}

pub fn config(places: &[&Path]) -> SourceConfig {
    SourceConfig {
        shards: places.iter().map(|place| place.display().to_string()).collect(),
        ..SourceConfig::default()
    }
}

pub fn open(places: &[&Path], cache: &Path) -> Result<Source> {
    Source::open(&config(places), cache, &mut |_| ())
}

/// What is said of shards that cannot be used.
pub fn error(places: &[&Path], cache: &Path) -> String {
    open(places, cache).map(|_| ()).expect_err("a broken shard").to_string()
}

pub fn all(source: &Source) -> Vec<Example> {
    (0..source.len()).map(|index| source.read(index).expect("an example")).collect()
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The same form as Python's.
pub fn told(example: &Example) -> Told {
    let field = |(name, value): &(String, Value)| {
        let value = match value {
            Value::Bytes(bytes) => digest(bytes).into(),
            Value::Text(text) => digest(text.as_bytes()).into(),
            Value::Integer(number) => (*number).into(),
            Value::Number(number) => (*number).into(),
            Value::Json(value) => value.clone(),
        };
        (name.clone(), value)
    };
    Told { key: example.key.clone(), fields: example.fields.iter().map(field).collect() }
}
