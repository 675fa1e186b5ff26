//! What Python would call or look up. Nothing is called: a few results are known, others stay opaque.

use tch::Kind;

use super::machine::{Machine, Outcome};
use super::{Id, Node, Storage, View};

/// Entries that are copied from one container to another, all together.
const MAX_COPIES: usize = 1 << 22;
/// Characters of names of classes and storages, and dimensions of tensors: they are copied.
const MAX_NAME: usize = 1 << 10;
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

/// A class or function.
pub(super) fn global(module: &str, name: &str) -> Outcome<Node> {
    match module.len() + name.len() {
        len if len > MAX_NAME => Err(format!("a name has {len} characters")),
        _ => Ok(Node::Global(format!("{module}.{name}"))),
    }
}

impl Machine<'_> {
    /// Puts what `callable` would return.
    pub(super) fn call(&mut self, callable: Id, args: Id) -> Outcome<()> {
        let class = match &self.nodes[callable] {
            Node::Global(name) => name.clone(),
            Node::Object { class, .. } => class.clone(),
            _ => "something that is no name".to_owned(),
        };
        let Node::List(given) = &self.nodes[args] else {
            return Err(format!("`{class}` is called with what are no arguments"));
        };
        let first = given.first().copied();
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
                let view = self.view(given)?;
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

    /// `(storage, offset, size, stride, …)`
    fn view(&self, args: &[Id]) -> Outcome<View> {
        let &[storage, offset, size, stride, ..] = args else {
            return Err("a tensor is described by too little".into());
        };
        let (Node::Storage(storage), Node::Int(offset)) =
            (&self.nodes[storage], &self.nodes[offset])
        else {
            return Err("a tensor has no storage".into());
        };
        let (size, stride) = (self.integers(size)?, self.integers(stride)?);
        if size.len() != stride.len() || size.len() > MAX_DIMS {
            return Err("a tensor has a shape that none can have".into());
        }
        Ok(View { storage: storage.clone(), offset: *offset, size, stride })
    }

    fn integers(&self, id: Id) -> Outcome<Vec<i64>> {
        let not = || "a tensor's shape is no list of integers".to_owned();
        let Node::List(items) = &self.nodes[id] else { return Err(not()) };
        if items.len() > MAX_DIMS {
            return Err(not());
        }
        let integer = |&id: &Id| match self.nodes[id] {
            Node::Int(value) => Ok(value),
            _ => Err(not()),
        };
        items.iter().map(integer).collect()
    }

    /// `("storage", class, key, device, numbers, …)`
    pub(super) fn storage(&self, id: Id) -> Outcome<Storage> {
        let unknown = || "it refers to something outside that is no storage".to_owned();
        let Node::List(parts) = &self.nodes[id] else { return Err(unknown()) };
        let &[what, class, key, _device, numel, ..] = parts.as_slice() else {
            return Err(unknown());
        };
        match [what, class, key, numel].map(|id| &self.nodes[id]) {
            [Node::Text(what), Node::Global(class), Node::Text(key), &Node::Int(numel)]
                if what == "storage" && numel >= 0 && key.len() <= MAX_NAME =>
            {
                let kind = KINDS.iter().find(|(name, _)| *name == class);
                Ok(Storage { key: key.clone(), kind: kind.map(|&(_, kind)| kind), numel })
            }
            _ => Err(unknown()),
        }
    }
}
