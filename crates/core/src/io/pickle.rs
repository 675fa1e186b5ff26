//! Files of `torch.save` (`.pt`, `.pth`, `pytorch_model.bin`) as data. Such a file is a program for
//! Python's pickle machine; here nothing in it is called. Tensors, dicts, lists, numbers and strings are
//! understood; whatever else it would build stays an opaque object that keeps its name and state.

mod call;
mod container;
mod machine;
mod tensors;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use tch::Kind;

use crate::{Error, Result};
use container::Container;

pub use tensors::tensors;

/// Nesting to which values are followed; configurations and state dicts have a fraction of it.
const MAX_DEPTH: usize = 32;
/// Values that are looked at in one go: shared ones could otherwise multiply without end.
const MAX_VISITS: usize = 1 << 20;

/// Place in [`Saved::nodes`].
type Id = usize;

/// What the pickle machine builds.
#[derive(Debug)]
enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes,
    /// Lists, tuples, sets.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, by its name.
    Global(String),
    Storage(Storage),
    Tensor(View),
    /// What a call or a class would have made.
    Object {
        class: String,
        /// A list.
        args: Id,
        state: Option<Id>,
        entries: Vec<(Id, Id)>,
    },
}

/// A run of numbers in the file.
#[derive(Clone, Debug)]
struct Storage {
    key: String,
    /// `None`: a type that is not read here.
    kind: Option<Kind>,
    numel: i64,
}

/// A tensor: how a storage is looked at.
#[derive(Clone, Debug)]
struct View {
    storage: Storage,
    offset: i64,
    size: Vec<i64>,
    stride: Vec<i64>,
}

/// What a file of `torch.save` holds. Tensors' values stay in the file until they are asked for.
#[derive(Debug)]
pub struct Saved {
    path: PathBuf,
    nodes: Vec<Node>,
    root: Id,
    container: Container,
}

/// Reads what is in the file, but for tensors' values.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::File`] if it is no whole file of `torch.save`, or its
/// parts claim to be larger than they can be.
pub fn read(path: &Path) -> Result<Saved> {
    let (container, pickle) = container::open(path)?;
    let mut nodes = Vec::new();
    let (root, container) = match container {
        Container::Legacy { .. } => container::legacy(path, &pickle, &mut nodes)?,
        zip => (machine::run(&pickle, &mut nodes).map_err(|e| broken(path, &e))?.0, zip),
    };
    Ok(Saved { path: path.to_owned(), nodes, root, container })
}

fn broken(path: &Path, reason: &str) -> Error {
    Error::file(path, format!("not a whole file of torch.save: {reason}"))
}

impl Saved {
    /// The outermost value.
    pub fn root(&self) -> Value<'_> {
        Value { saved: self, id: self.root }
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }
}

/// One value of a [`Saved`] file.
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

    /// Keys and values of a dict, or of an opaque object's state; keys that are not strings are left out.
    pub fn entries(self) -> Vec<(&'a str, Value<'a>)> {
        let (own, state) = match self.node() {
            Node::Dict(entries) => (entries.as_slice(), None),
            Node::Object { entries, state, .. } => (entries.as_slice(), *state),
            _ => (&[][..], None),
        };
        let state = match state.map(|id| self.saved.node(id)) {
            Some(Node::Dict(entries)) => entries.as_slice(),
            _ => &[],
        };
        let named = |&(key, value): &(Id, Id)| match self.saved.node(key) {
            Node::Text(key) => Some((key.as_str(), self.at(value))),
            _ => None,
        };
        own.iter().chain(state).filter_map(named).collect()
    }

    /// The value at `key` of a dict or of an opaque object's state.
    pub fn get(self, key: &str) -> Option<Value<'a>> {
        // The last one is what Python would keep.
        self.entries().into_iter().rev().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// Whether it is a dict, or what an unknown class made of one.
    pub fn is_dict(self) -> bool {
        matches!(self.node(), Node::Dict(_))
    }

    /// Name of the class or function that would have made an opaque object.
    pub fn class(self) -> Option<&'a str> {
        match self.node() {
            Node::Object { class, .. } => Some(class),
            _ => None,
        }
    }

    /// Dicts, lists, numbers and strings as JSON. Of opaque objects it is their state: the attributes of an
    /// `argparse.Namespace`, the content of OmegaConf's containers, the value of an enumeration.
    pub fn to_json(self) -> Json {
        let mut visits = 0;
        self.json(0, &mut visits)
    }

    fn json(self, depth: usize, visits: &mut usize) -> Json {
        *visits += 1;
        if depth > MAX_DEPTH || *visits > MAX_VISITS {
            return Json::Null;
        }
        let mut below = |id| self.at(id).json(depth + 1, visits);
        match self.node() {
            Node::Bool(value) => Json::from(*value),
            Node::Int(value) => Json::from(*value),
            Node::Float(value) => Json::from(*value),
            Node::Text(value) => Json::from(value.as_str()),
            Node::List(items) => items.iter().map(|&id| below(id)).collect(),
            Node::Dict(_) => {
                let entries = self.entries().into_iter();
                let map: Map<String, Json> =
                    entries.map(|(key, value)| (key.to_owned(), below(value.id))).collect();
                Json::Object(map)
            }
            Node::Object { state: Some(state), .. } => {
                let state = self.at(*state);
                // OmegaConf: each container and each value in it is an object of its own.
                let inner = ["_content", "_val"].into_iter().find_map(|key| state.get(key));
                below(inner.unwrap_or(state).id)
            }
            // An enumeration: its class is called with the value.
            Node::Object { args, entries, .. } if entries.is_empty() => {
                match self.saved.node(*args) {
                    Node::List(args) if args.len() == 1 => below(args[0]),
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

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod pickle_tests;
