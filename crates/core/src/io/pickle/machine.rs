//! The pickle machine: interprets the opcodes of protocols 2 to 5, and older ones that they share.

use std::collections::HashMap;

use super::{Id, Node, Outcome, global};

/// Largest number of nodes in a file, a few hundred times that of checkpoints.
const MAX_NODES: usize = 1 << 22;

/// Runs the pickle at the start of `bytes`; returns its result and its length in bytes.
pub(super) fn run(bytes: &[u8], nodes: &mut Vec<Node>) -> Outcome<(Id, usize)> {
    let machine = Machine {
        bytes,
        pos: 0,
        nodes,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    machine.run()
}

pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    pos: usize,
    pub(super) nodes: &'a mut Vec<Node>,
    pub(super) stack: Vec<Id>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Entries copied from one container to another.
    pub(super) copied: usize,
}

impl Machine<'_> {
    fn run(mut self) -> Outcome<(Id, usize)> {
        loop {
            let (pos, op) = (self.pos, self.byte()?);
            if op == b'.' {
                return Ok((self.pop()?, self.pos));
            }
            self.step(op).map_err(|reason| format!("{reason} (at byte {pos} of the pickle)"))?;
        }
    }

    fn step(&mut self, op: u8) -> Outcome<()> {
        match op {
            0x80 => drop(self.byte()?),  // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.marks.push(self.stack.len()),
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => self.stack.push(self.top()?),
            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            b'I' => match self.line()?.as_str() {
                "00" => self.push(Node::Bool(false))?,
                "01" => self.push(Node::Bool(true))?,
                digits => self.push(integer(digits)?)?,
            },
            b'L' => {
                let line = self.line()?;
                self.push(integer(line.trim_end_matches('L'))?)?;
            }
            b'J' => {
                let value = self.number(4)? as u32 as i32;
                self.push(Node::Int(value.into()))?;
            }
            b'K' | b'M' => {
                let value = self.number(if op == b'K' { 1 } else { 2 })?;
                self.push(Node::Int(value as i64))?;
            }
            0x8a | 0x8b => {
                let len = self.number(if op == 0x8a { 1 } else { 4 })?;
                let node = long(self.take(len)?);
                self.push(node)?;
            }
            b'F' => {
                let line = self.line()?;
                let value = line.parse().map_err(|_| format!("{line:?} is not a number"))?;
                self.push(Node::Float(value))?;
            }
            b'G' => {
                let value = self.take(8)?.iter().fold(0, |all, &byte| all << 8 | u64::from(byte));
                self.push(Node::Float(f64::from_bits(value)))?;
            }
            b'S' | b'V' => {
                let line = self.line()?;
                self.push(Node::String(line.trim_matches(['\'', '"']).to_owned()))?;
            }
            b'U' | 0x8c => self.string(1)?,
            b'T' | b'X' => self.string(4)?,
            0x8d => self.string(8)?,
            b'C' => self.skip(1)?,
            b'B' => self.skip(4)?,
            0x8e | 0x96 => self.skip(8)?, // BINBYTES8, BYTEARRAY8
            b']' | b')' | 0x8f => self.push(Node::List(Vec::new()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b'l' | b't' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Node::List(items))?;
            }
            0x85..=0x87 => {
                let from = self.stack.len().checked_sub(usize::from(op - 0x84));
                let items = self.stack.split_off(from.ok_or(UNDERFLOW)?);
                self.push(Node::List(items))?;
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Node::Dict(pairs(&items)))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[(key, value)])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(&pairs(&items))?;
            }
            b'p' | b'q' | b'r' | 0x94 => {
                let at = match op {
                    b'p' => parse(&self.line()?)?,
                    b'q' => self.number(1)? as u64,
                    b'r' => self.number(4)? as u64,
                    _ => self.memo.len() as u64, // MEMOIZE
                };
                let top = self.top()?;
                self.memo.insert(at, top);
            }
            b'g' | b'h' | b'j' => {
                let at = match op {
                    b'g' => parse(&self.line()?)?,
                    b'h' => self.number(1)? as u64,
                    _ => self.number(4)? as u64,
                };
                let id = self.memo.get(&at).ok_or("a memo entry is used before it is set")?;
                self.stack.push(*id);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let node = global(&module, &name)?;
                self.push(node)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let node = global(self.string_of(module)?, self.string_of(name)?)?;
                self.push(node)?;
            }
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.call(callable, args)?;
            }
            0x92 => {
                let (_named, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(class, args)?;
            }
            b'i' | b'o' => {
                let mut items = self.pop_mark()?;
                let class = match op {
                    b'i' => {
                        let (module, name) = (self.line()?, self.line()?);
                        self.node(global(&module, &name)?)?
                    }
                    _ if items.is_empty() => return Err(UNDERFLOW.into()),
                    _ => items.remove(0),
                };
                let args = self.node(Node::List(items))?;
                self.call(class, args)?;
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                // The state of dicts and tensors is not needed.
                if let Node::Object { state: slot, .. } = &mut self.nodes[target] {
                    *slot = Some(state);
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Node::Storage(storage))?;
            }
            _ => return Err(format!("unknown opcode {op:#04x}")),
        }
        Ok(())
    }

    /// Adds a node.
    fn node(&mut self, node: Node) -> Outcome<Id> {
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("it has more than {MAX_NODES} values"));
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    pub(super) fn push(&mut self, node: Node) -> Outcome<()> {
        let id = self.node(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Outcome<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(UNDERFLOW.into());
        }
        self.stack.pop().ok_or_else(|| UNDERFLOW.into())
    }

    fn top(&self) -> Outcome<Id> {
        self.stack.last().copied().ok_or_else(|| UNDERFLOW.into())
    }

    fn pop_mark(&mut self) -> Outcome<Vec<Id>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn append(&mut self, items: &[Id]) -> Outcome<()> {
        let target = self.top()?;
        match &mut self.nodes[target] {
            Node::List(list) => list.extend(items),
            Node::Object { .. } => {}
            _ => return Err("append to a value that is not a list".into()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[(Id, Id)]) -> Outcome<()> {
        let target = self.top()?;
        match &mut self.nodes[target] {
            Node::Dict(entries) | Node::Object { entries, .. } => entries.extend(items),
            _ => return Err("a key is set in a value that is not a dict".into()),
        }
        Ok(())
    }

    fn string_of(&self, id: Id) -> Outcome<&str> {
        match &self.nodes[id] {
            Node::String(value) => Ok(value),
            _ => Err("a name is not a string".into()),
        }
    }

    fn string(&mut self, width: usize) -> Outcome<()> {
        let len = self.number(width)?;
        let value = String::from_utf8_lossy(self.take(len)?).into_owned();
        self.push(Node::String(value))
    }

    fn skip(&mut self, width: usize) -> Outcome<()> {
        let len = self.number(width)?;
        self.take(len)?;
        self.push(Node::Bytes)
    }

    fn byte(&mut self) -> Outcome<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// Reads an unsigned little-endian number of `width` bytes.
    fn number(&mut self, width: usize) -> Outcome<usize> {
        let value = self.take(width)?.iter().rev().fold(0, |all, &b| all << 8 | u64::from(b));
        usize::try_from(value).map_err(|_| TRUNCATED.to_owned())
    }

    fn take(&mut self, len: usize) -> Outcome<&[u8]> {
        let end =
            self.pos.checked_add(len).filter(|&end| end <= self.bytes.len()).ok_or(TRUNCATED)?;
        let taken = &self.bytes[self.pos..end];
        self.pos = end;
        Ok(taken)
    }

    fn line(&mut self) -> Outcome<String> {
        let rest = &self.bytes[self.pos..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or(TRUNCATED)?;
        self.pos += len + 1;
        Ok(String::from_utf8_lossy(&rest[..len]).trim_end_matches('\r').to_owned())
    }
}

const UNDERFLOW: &str = "stack underflow in the pickle";
const TRUNCATED: &str = "the pickle is truncated";

fn pairs(items: &[Id]) -> Vec<(Id, Id)> {
    items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

fn parse(digits: &str) -> Outcome<u64> {
    digits.parse().map_err(|_| format!("{digits:?} is not a memo index"))
}

/// Parses an integer; one beyond 64 bits becomes a float.
fn integer(digits: &str) -> Outcome<Node> {
    match digits.parse() {
        Ok(value) => Ok(Node::Int(value)),
        Err(_) => {
            digits.parse().map(Node::Float).map_err(|_| format!("{digits:?} is not a number"))
        }
    }
}

/// Parses a signed little-endian integer; one beyond 64 bits becomes opaque bytes.
fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Bytes;
    }
    let negative = bytes.last().is_some_and(|&b| b >= 0x80);
    let start = if negative { -1 } else { 0 };
    Node::Int(bytes.iter().rev().fold(start, |all, &b| all << 8 | i64::from(b)))
}
