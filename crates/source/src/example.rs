//! What is read of one example.

use bytes::Bytes;

/// One example: its key, and its fields in the order of the shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// What the shard calls it; unique in its shard if the shard is well made.
    pub key: String,
    /// By extension (`flac`, `txt`, `seg.png`) or column.
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
}

impl Value {
    /// The content, if it is bytes.
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
        }
    }

    /// The text, if it is one or bytes that are UTF-8.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
        }
    }
}

/// A field, as the index knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Extension or column.
    pub name: String,
    /// Bytes it takes; `None` where only reading it tells.
    pub size: Option<u64>,
}
