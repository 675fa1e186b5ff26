//! Helpers shared by the tests; each test uses some of them.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data2vec_source::{Example, Result, Source, SourceConfig, Value};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// An example as read by Python, with digests of bytes and text: see `fixtures/make.py`.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Summary {
    pub key: String,
    pub fields: BTreeMap<String, serde_json::Value>,
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Returns the examples that Python read from each fixture.
pub fn expected() -> BTreeMap<String, Vec<Summary>> {
    let text = std::fs::read_to_string(fixture("expected.json")).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}

pub fn config(paths: &[&Path]) -> SourceConfig {
    SourceConfig {
        shards: paths.iter().map(|path| path.display().to_string()).collect(),
        ..SourceConfig::default()
    }
}

pub fn open(paths: &[&Path], cache: &Path) -> Result<Source> {
    Source::open(&config(paths), cache, &mut |_| ())
}

/// Returns the error of opening invalid shards.
pub fn error(paths: &[&Path], cache: &Path) -> String {
    open(paths, cache).map(|_| ()).expect_err("an invalid shard").to_string()
}

pub fn all(source: &Source) -> Vec<Example> {
    (0..source.len()).map(|index| source.read(index).expect("an example")).collect()
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Summarises an example as `fixtures/make.py` does.
pub fn summarize(example: &Example) -> Summary {
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
    Summary { key: example.key.clone(), fields: example.fields.iter().map(field).collect() }
}
