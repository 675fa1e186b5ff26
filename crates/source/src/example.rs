//! Examples and the values of their fields.

use bytes::Bytes;

/// Names and values of an example's fields.
pub(crate) type Fields = Vec<(String, Value)>;

/// An example: its key and its fields, in the order of the shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Key within the shard: a path in a tar shard, else the number of the line or row, from 1.
    pub key: String,
    /// Values by extension (`flac`, `txt`, `seg.png`) or column. A column of a struct is named
    /// `outer.inner`, except that its `bytes` are the field `outer`. Nulls are omitted.
    pub fields: Vec<(String, Value)>,
}

impl Example {
    /// Returns the field `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }
}

/// Value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// File content; every field of a tar shard.
    Bytes(Bytes),
    /// Text.
    Text(String),
    /// Integer.
    Integer(i64),
    /// Floating-point number.
    Number(f64),
    /// Any other JSON value: boolean, array, object.
    Json(serde_json::Value),
}

impl Value {
    /// Returns the content of [`Value::Bytes`].
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns text, or bytes that are valid UTF-8.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Returns an integer, or text that parses as one, such as `cls` in tar shards.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => self.text()?.trim().parse().ok(),
        }
    }

    /// Returns a number, or text that parses as one.
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

/// Name and size of a field, as stored in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Extension or column.
    pub name: String,
    /// Size in bytes in the shard; `None` if unknown without reading it (Parquet columns).
    pub size: Option<u64>,
}
