//! Reader of `torch.save` files (`.pt`, `.pth`, `pytorch_model.bin`) that executes no code.
//!
//! Such a file is a program for Python's pickle machine. This reader interprets its opcodes but
//! calls nothing: tensors, dicts, lists, numbers and strings become values, everything else stays
//! an opaque object with class name and state.

mod call;
mod container;
mod machine;
mod tensors;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use tch::Kind;

use crate::{Error, Result};
use container::Container;

/// Largest nesting depth of values; configurations and state dicts need a fraction of it.
const MAX_DEPTH: usize = 32;
/// Largest number of values that one traversal visits; shared values can multiply exponentially.
const MAX_VISITS: usize = 1 << 20;

/// Largest length of the names of classes and storages, which are copied.
const MAX_NAME: usize = 1 << 10;

/// Result of an operation of the pickle machine; the error is a message without the path.
type Outcome<T> = std::result::Result<T, String>;

/// Index into [`Saved::nodes`].
type Id = usize;

/// A value that the pickle machine builds.
#[derive(Debug)]
enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    Bytes,
    /// A list, tuple or set.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, by its qualified name.
    Global(String),
    Storage(Storage),
    Tensor(View),
    /// The result that an unknown call would have.
    Object {
        class: String,
        /// Id of the list of arguments.
        args: Id,
        state: Option<Id>,
        entries: Vec<(Id, Id)>,
    },
}

/// A storage: a contiguous array in the file.
#[derive(Clone, Debug)]
struct Storage {
    key: String,
    /// `None` for an unsupported type.
    kind: Option<Kind>,
    numel: i64,
}

/// A tensor: a strided view of a storage.
#[derive(Clone, Debug)]
struct View {
    storage: Storage,
    offset: i64,
    size: Vec<i64>,
    stride: Vec<i64>,
}

/// The content of a `torch.save` file; storages are read on demand.
#[derive(Debug)]
pub struct Saved {
    path: PathBuf,
    nodes: Vec<Node>,
    root: Id,
    container: Container,
}

/// Reads a `torch.save` file, except the values of tensors.
///
/// # Errors
/// Returns [`Error::Io`] if the file cannot be read and [`Error::File`] if it is not a complete
/// `torch.save` file or declares impossible sizes.
pub fn read(path: &Path) -> Result<Saved> {
    let (container, pickle) = container::open(path)?;
    let mut nodes = Vec::new();
    let (root, container) = match container {
        Container::Legacy { .. } => container::legacy(path, &pickle, &mut nodes)?,
        zip => (machine::run(&pickle, &mut nodes).map_err(|e| invalid(path, &e))?.0, zip),
    };
    Ok(Saved { path: path.to_owned(), nodes, root, container })
}

fn invalid(path: &Path, reason: &str) -> Error {
    Error::file(path, format!("not a complete torch.save file: {reason}"))
}

impl Saved {
    /// Returns the outermost value.
    pub fn root(&self) -> Value<'_> {
        Value { saved: self, id: self.root }
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }
}

/// A value in a [`Saved`] file.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    saved: &'a Saved,
    id: Id,
}

impl<'a> Value<'a> {
    fn node(self) -> &'a Node {
        self.saved.node(self.id)
    }

    fn at(self, id: Id) -> Self {
        Self { id, ..self }
    }

    /// Returns the entries with string keys of a dict or of an opaque object and its state.
    pub fn entries(self) -> Vec<(&'a str, Value<'a>)> {
        let (entries, state) = match self.node() {
            Node::Dict(entries) => (entries.as_slice(), None),
            Node::Object { entries, state, .. } => (entries.as_slice(), *state),
            _ => (&[][..], None),
        };
        let state = match state.map(|id| self.saved.node(id)) {
            Some(Node::Dict(entries)) => entries.as_slice(),
            _ => &[],
        };
        let with_string_key = |&(key, value): &(Id, Id)| match self.saved.node(key) {
            Node::String(key) => Some((key.as_str(), self.at(value))),
            _ => None,
        };
        entries.iter().chain(state).filter_map(with_string_key).collect()
    }

    /// Returns the value at `key` of a dict or of an opaque object and its state.
    pub fn get(self, key: &str) -> Option<Value<'a>> {
        // Python keeps the last of equal keys.
        self.entries().into_iter().rev().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// Returns whether the value is a dict.
    pub fn is_dict(self) -> bool {
        matches!(self.node(), Node::Dict(_))
    }

    /// Converts dicts, lists, numbers and strings to JSON.
    ///
    /// Opaque objects convert to their state: the attributes of an `argparse.Namespace`, the
    /// content of OmegaConf containers, the value of an enumeration. Other values convert to null.
    pub fn to_json(self) -> Json {
        let mut visits = 0;
        self.json(0, &mut visits)
    }

    fn json(self, depth: usize, visits: &mut usize) -> Json {
        *visits += 1;
        if depth > MAX_DEPTH || *visits > MAX_VISITS {
            return Json::Null;
        }
        let mut child = |id| self.at(id).json(depth + 1, visits);
        match self.node() {
            Node::Bool(value) => Json::from(*value),
            Node::Int(value) => Json::from(*value),
            Node::Float(value) => Json::from(*value),
            Node::String(value) => Json::from(value.as_str()),
            Node::List(items) => items.iter().map(|&id| child(id)).collect(),
            Node::Dict(_) => {
                let entries = self.entries().into_iter();
                let map: Map<String, Json> =
                    entries.map(|(key, value)| (key.to_owned(), child(value.id))).collect();
                Json::Object(map)
            }
            Node::Object { state: Some(state), .. } => {
                let state = self.at(*state);
                // OmegaConf: each container and each value in it is an object.
                let inner = ["_content", "_val"].into_iter().find_map(|key| state.get(key));
                child(inner.unwrap_or(state).id)
            }
            // An enumeration: a call of its class with the value.
            Node::Object { args, entries, .. } if entries.is_empty() => {
                match self.saved.node(*args) {
                    Node::List(args) if args.len() == 1 => child(args[0]),
                    _ => Json::Null,
                }
            }
            Node::None
            | Node::Bytes
            | Node::Global(_)
            | Node::Storage(_)
            | Node::Tensor(_)
            | Node::Object { .. } => Json::Null,
        }
    }
}

/// Creates the node of a class or function.
fn global(module: &str, name: &str) -> Outcome<Node> {
    match module.len() + name.len() {
        len if len > MAX_NAME => {
            Err(format!("a name has {len} characters, at most {MAX_NAME} are supported"))
        }
        _ => Ok(Node::Global(format!("{module}.{name}"))),
    }
}

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod tests;
