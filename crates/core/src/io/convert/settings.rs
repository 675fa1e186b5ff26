//! The configuration of a checkpoint.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

/// The configuration of a checkpoint, which keeps track of the keys that were read.
#[derive(Debug, Default)]
pub struct Settings<'a> {
    values: Option<&'a Map<String, Json>>,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Settings<'a> {
    /// Wraps the JSON object `json`; without one, all keys are absent.
    pub fn new(json: Option<&'a Json>) -> Self {
        Self { values: json.and_then(Json::as_object), used: RefCell::default() }
    }

    /// Returns whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.values.is_none_or(Map::is_empty)
    }

    /// Returns the value of `key`; `None` if it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Json> {
        self.used.borrow_mut().insert(key.to_owned());
        self.values?.get(key).filter(|value| !value.is_null())
    }

    /// Returns the number at `key`.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    /// Returns the integer at `key`.
    pub fn integer(&self, key: &str) -> Option<i64> {
        self.get(key)?.as_i64()
    }

    /// Returns the list of integers at `key`.
    pub fn integers(&self, key: &str) -> Option<Vec<i64>> {
        self.get(key)?.as_array()?.iter().map(Json::as_i64).collect()
    }

    /// Returns the Boolean at `key`.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    /// Returns the string at `key`.
    pub fn string(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    /// Returns the probability at `key`; 0 if it is absent or out of range.
    pub fn probability(&self, key: &str) -> f64 {
        self.number(key).filter(|p| (0.0..1.0).contains(p)).unwrap_or(0.0)
    }

    /// Returns a line that lists the keys that were not read; `None` if there are none.
    ///
    /// `ignored` are the names, separated by spaces, of keys that are known to have no effect.
    pub fn unused(&self, ignored: &str) -> Option<String> {
        const MAX_SHOWN: usize = 12;
        let used = self.used.borrow();
        let is_unused = |key: &&String| {
            !used.contains(*key)
                && !ignored.split_whitespace().any(|ignored| ignored == key.as_str())
        };
        let keys: Vec<&String> = self.values?.keys().filter(is_unused).collect();
        let shown: Vec<&str> = keys.iter().take(MAX_SHOWN).map(|key| key.as_str()).collect();
        let more = keys.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let line = format!("unused keys of its configuration: {}", shown.join(", "));
        (!keys.is_empty()).then(|| line + &more)
    }
}

/// Returns the part of a fairseq configuration that describes the pretrained model, which
/// fine-tuned models nest in their own.
pub fn pretrained_config(config: &Json) -> &Json {
    let mut model = config.get("model").filter(|model| model.is_object()).unwrap_or(config);
    while let Some(inner) = ["w2v_args", "pretrained_model_args"]
        .iter()
        .find_map(|key| model.get(key).filter(|inner| inner.is_object()))
    {
        model = inner.get("model").filter(|model| model.is_object()).unwrap_or(inner);
    }
    model
}
