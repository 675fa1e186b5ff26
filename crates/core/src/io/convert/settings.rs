//! What a checkpoint says of its own sizes.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

/// A configuration that came with a checkpoint, and which of its keys were looked at.
#[derive(Debug, Default)]
pub struct Settings<'a> {
    values: Option<&'a Map<String, Json>>,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Settings<'a> {
    /// Those of the object `json`; without one, everything is unknown.
    pub fn new(json: Option<&'a Json>) -> Self {
        Self { values: json.and_then(Json::as_object), used: RefCell::default() }
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.values.is_none_or(Map::is_empty)
    }

    /// The value at `key`; null counts as none.
    pub fn get(&self, key: &str) -> Option<&'a Json> {
        self.used.borrow_mut().insert(key.to_owned());
        self.values?.get(key).filter(|value| !value.is_null())
    }

    /// The number at `key`.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    /// The integer at `key`.
    pub fn integer(&self, key: &str) -> Option<i64> {
        self.get(key)?.as_i64()
    }

    /// The integers at `key`.
    pub fn integers(&self, key: &str) -> Option<Vec<i64>> {
        self.get(key)?.as_array()?.iter().map(Json::as_i64).collect()
    }

    /// The truth at `key`.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    /// The text at `key`.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    /// The probability at `key`, 0 without one or for what none can be.
    pub fn probability(&self, key: &str) -> f64 {
        self.number(key).filter(|p| (0.0..1.0).contains(p)).unwrap_or(0.0)
    }

    /// Keys that nobody asked for, in a line; `None` if there are none. `idle` names, between
    /// blanks, those that are known to change nothing.
    pub fn unused(&self, idle: &str) -> Option<String> {
        /// More would hide what matters.
        const SHOWN: usize = 12;
        let used = self.used.borrow();
        let left = |key: &&String| {
            !used.contains(*key) && !idle.split_whitespace().any(|idle| idle == key.as_str())
        };
        let keys: Vec<&String> = self.values?.keys().filter(left).collect();
        let shown: Vec<&str> = keys.iter().take(SHOWN).map(|key| key.as_str()).collect();
        let more = keys.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let line =
            format!("keys of its configuration that change nothing here: {}", shown.join(", "));
        (!keys.is_empty()).then(|| line + &more)
    }
}

/// The part of fairseq's configuration that tells of the pretrained model. A fine-tuned model carries
/// that inside its own.
pub fn pretraining(config: &Json) -> &Json {
    let mut model = config.get("model").filter(|model| model.is_object()).unwrap_or(config);
    while let Some(inner) = ["w2v_args", "pretrained_model_args"]
        .iter()
        .find_map(|key| model.get(key).filter(|inner| inner.is_object()))
    {
        model = inner.get("model").filter(|model| model.is_object()).unwrap_or(inner);
    }
    model
}
