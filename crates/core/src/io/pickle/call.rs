//! Calls and globals of the pickle machine: known calls get their result, others stay opaque
//! objects.

use tch::Kind;

use super::machine::Machine;
use super::{Id, MAX_NAME, Node, Outcome, Storage, View};

/// Largest total number of entries copied from one container to another.
const MAX_COPIES: usize = 1 << 22;
/// Largest number of dimensions of a tensor.
const MAX_DIMS: usize = 64;

const KINDS: [(&str, Kind); 10] = [
    ("torch.FloatStorage", Kind::Float),
    ("torch.HalfStorage", Kind::Half),
    ("torch.BFloat16Storage", Kind::BFloat16),
    ("torch.DoubleStorage", Kind::Double),
    ("torch.LongStorage", Kind::Int64),
    ("torch.IntStorage", Kind::Int),
    ("torch.ShortStorage", Kind::Int16),
    ("torch.CharStorage", Kind::Int8),
    ("torch.ByteStorage", Kind::Uint8),
    ("torch.BoolStorage", Kind::Bool),
];

impl Machine<'_> {
    /// Pushes the result of calling `callable`.
    pub(super) fn call(&mut self, callable: Id, args: Id) -> Outcome<()> {
        let class = match &self.nodes[callable] {
            Node::Global(name) => name.clone(),
            Node::Object { class, .. } => class.clone(),
            _ => "an unnamed object".to_owned(),
        };
        let Node::List(arguments) = &self.nodes[args] else {
            return Err(format!("the arguments of `{class}` are not a tuple"));
        };
        let first = arguments.first().copied();
        match (class.as_str(), first) {
            ("collections.OrderedDict" | "collections.defaultdict" | "builtins.dict", _) => {
                let entries = match first.map(|id| &self.nodes[id]) {
                    Some(Node::List(items)) => {
                        let pair = |&id: &Id| match &self.nodes[id] {
                            Node::List(pair) if pair.len() == 2 => Some((pair[0], pair[1])),
                            _ => None,
                        };
                        items.iter().filter_map(pair).collect()
                    }
                    Some(Node::Dict(entries)) => entries.clone(),
                    _ => Vec::new(),
                };
                self.copied += entries.len();
                if self.copied > MAX_COPIES {
                    return Err(format!("it copies more than {MAX_COPIES} values"));
                }
                self.push(Node::Dict(entries))
            }
            ("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", _) => {
                let view = self.view(arguments)?;
                self.push(Node::Tensor(view))
            }
            (
                "torch._utils._rebuild_parameter"
                | "torch._utils._rebuild_parameter_with_state"
                | "torch.Size"
                | "torch.device"
                | "builtins.set"
                | "builtins.frozenset"
                | "builtins.list"
                | "builtins.tuple",
                Some(first),
            ) => {
                self.stack.push(first);
                Ok(())
            }
            ("torch.Size" | "builtins.set" | "builtins.list" | "builtins.tuple", None) => {
                self.push(Node::List(Vec::new()))
            }
            _ => self.push(Node::Object { class, args, state: None, entries: Vec::new() }),
        }
    }

    /// Parses `(storage, offset, size, stride, …)`.
    fn view(&self, args: &[Id]) -> Outcome<View> {
        let &[storage, offset, size, stride, ..] = args else {
            return Err("a tensor has too few arguments".into());
        };
        let (Node::Storage(storage), Node::Int(offset)) =
            (&self.nodes[storage], &self.nodes[offset])
        else {
            return Err("a tensor has no storage".into());
        };
        let (size, stride) = (self.integers(size)?, self.integers(stride)?);
        if size.len() != stride.len() || size.len() > MAX_DIMS {
            return Err("a tensor has an invalid shape".into());
        }
        Ok(View { storage: storage.clone(), offset: *offset, size, stride })
    }

    fn integers(&self, id: Id) -> Outcome<Vec<i64>> {
        let invalid = || "the shape of a tensor is not a list of integers".to_owned();
        let Node::List(items) = &self.nodes[id] else { return Err(invalid()) };
        if items.len() > MAX_DIMS {
            return Err(invalid());
        }
        let integer = |&id: &Id| match self.nodes[id] {
            Node::Int(value) => Ok(value),
            _ => Err(invalid()),
        };
        items.iter().map(integer).collect()
    }

    /// Parses the persistent id `("storage", class, key, device, numel, …)`.
    pub(super) fn storage(&self, id: Id) -> Outcome<Storage> {
        let unknown = || "a persistent id is not that of a storage".to_owned();
        let Node::List(parts) = &self.nodes[id] else { return Err(unknown()) };
        let &[tag, class, key, _device, numel, ..] = parts.as_slice() else {
            return Err(unknown());
        };
        match [tag, class, key, numel].map(|id| &self.nodes[id]) {
            [Node::String(tag), Node::Global(class), Node::String(key), &Node::Int(numel)]
                if tag == "storage" && numel >= 0 && key.len() <= MAX_NAME =>
            {
                let kind = KINDS.iter().find(|(name, _)| *name == class);
                Ok(Storage { key: key.clone(), kind: kind.map(|&(_, kind)| kind), numel })
            }
            _ => Err(unknown()),
        }
    }
}
