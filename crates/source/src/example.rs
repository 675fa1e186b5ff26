//! What is read of one example.

use bytes::Bytes;

/// Names and values.
pub(crate) type Fields = Vec<(String, Value)>;

/// One example: its key, and its fields in the order of the shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// What the shard calls it: a path in a tar shard, the number of a line or a row from 1.
    pub key: String,
    /// By extension (`flac`, `txt`, `seg.png`) or column. A column in a struct is `outer.inner`, but the
    /// `bytes` of one are the field `outer`. What is null is left out.
    pub fields: Vec<(String, Value)>,
}

impl Example {
    /// The field of that name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A file's content, as in every field of a tar shard.
    Bytes(Bytes),
    /// A text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// Another number.
    Number(f64),
    /// Anything else: a truth value, a list, an object.
    Json(serde_json::Value),
}

impl Value {
    /// The content, if it is bytes.
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text, if it is one or bytes that are UTF-8.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The whole number, if it is one or a text that is nothing else, as `cls` is in tar shards.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => self.text()?.trim().parse().ok(),
        }
    }

    /// The number, if it is one or a text that is nothing else.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Number(number) => Some(*number),
            _ => self.text()?.trim().parse().ok(),
        }
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::String(text) => Self::Text(text),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Self::Integer(number),
                (None, Some(number)) => Self::Number(number),
                (None, None) => Self::Json(number.into()),
            },
            value => Self::Json(value),
        }
    }
}

/// A field, as the index knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Extension or column.
    pub name: String,
    /// Bytes it takes in the shard; `None` where only reading it tells (columns of Parquet).
    pub size: Option<u64>,
}
