//! Tests with valid, truncated, corrupt and hostile `torch.save` files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::json;
use tch::Tensor;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

/// Assembler of pickle opcodes.
#[derive(Clone, Default)]
struct Asm(Vec<u8>);

impl Asm {
    fn new() -> Self {
        Self(vec![0x80, 2])
    }

    fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn string(self, value: &str) -> Self {
        let len = (value.len() as u32).to_le_bytes();
        self.op(b"X").op(&len).op(value.as_bytes())
    }

    fn int(self, value: i32) -> Self {
        self.op(b"J").op(&value.to_le_bytes())
    }

    fn global(self, module: &str, name: &str) -> Self {
        self.op(b"c").op(format!("{module}\n{name}\n").as_bytes())
    }

    fn ints(self, values: &[i32]) -> Self {
        let all = values.iter().fold(self.op(b"("), |asm, &value| asm.int(value));
        all.op(b"t")
    }

    /// Adds an f32 tensor in the storage `key` of `numel` elements.
    fn tensor(self, key: &str, numel: i32, offset: i32, size: &[i32], stride: &[i32]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .string("storage")
            .global("torch", "FloatStorage")
            .string(key)
            .string("cpu")
            .int(numel)
            .op(b"tQ")
            .int(offset)
            .ints(size)
            .ints(stride)
            .op(&[0x89, b'N']) // no gradient, no hooks
            .op(b"tR")
    }

    fn end(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// Entries of a zip file.
type Entries<'a> = &'a [(&'a str, &'a [u8])];

fn write_zip(path: &Path, entries: Entries<'_>, method: CompressionMethod) {
    let mut zip = ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in entries {
        let options = SimpleFileOptions::default().compression_method(method);
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

struct TestDir(tempfile::TempDir);

impl TestDir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn saved(&self, pickle: &[u8], storages: Entries<'_>) -> PathBuf {
        let path = self.0.path().join("model.pt");
        let named: Vec<(String, &[u8])> =
            storages.iter().map(|(key, bytes)| (format!("a/data/{key}"), *bytes)).collect();
        let mut entries: Vec<(&str, &[u8])> = vec![("a/data.pkl", pickle)];
        entries.extend(named.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
        write_zip(&path, &entries, CompressionMethod::Stored);
        path
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn assert_error<T: std::fmt::Debug>(result: Result<T>, expected: &[&str]) {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    for part in expected {
        assert!(message.contains(part), "{message:?} without {part:?}");
    }
}

/// Reads all tensors of the state dict in the file `path`.
fn tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let saved = read(path)?;
    saved.tensors(saved.state_dict())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.contiguous().flatten(0, -1)).unwrap()
}

#[test]
fn reads_strided_and_shared_tensors_in_nested_dicts() {
    let pickle = Asm::new()
        .op(b"}(")
        .string("model")
        .op(b"}(")
        .string("weight")
        .tensor("0", 6, 0, &[2, 3], &[3, 1])
        .string("transposed")
        .tensor("0", 6, 0, &[3, 2], &[1, 3])
        .string("end")
        .tensor("0", 6, 4, &[2], &[1])
        .string("_ema")
        .op(b"}")
        .string("weight")
        .tensor("1", 1, 0, &[], &[])
        .op(b"s")
        .string("version")
        .int(3)
        .op(b"u")
        .string("args")
        .op(b"Nu")
        .end();
    let dir = TestDir::new();
    let storage = floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let path = dir.saved(&pickle, &[("0", &storage), ("1", &floats(&[7.0]))]);
    let tensors = tensors(&path).unwrap();
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    assert_eq!(names, ["_ema.weight", "end", "transposed", "weight"]);
    assert_eq!(tensors["weight"].size(), [2, 3]);
    assert_eq!(values(&tensors["transposed"]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(values(&tensors["end"]), [4.0, 5.0]);
    assert_eq!(values(&tensors["_ema.weight"]), [7.0]);
}

#[test]
fn reads_deflated_entries() {
    let dir = TestDir::new();
    let path = dir.0.path().join("x.pt");
    let pickle = Asm::new().op(b"}").string("w").tensor("0", 2, 0, &[2], &[1]).op(b"s").end();
    let storage = floats(&[1.5, 2.5]);
    let entries: Entries<'_> = &[("a/data.pkl", &pickle), ("a/data/0", &storage)];
    write_zip(&path, entries, CompressionMethod::Deflated);
    assert_eq!(values(&tensors(&path).unwrap()["w"]), [1.5, 2.5]);
}

#[test]
fn executes_no_calls() {
    let marker = std::env::temp_dir().join(format!("data2vec-pickle-{}", std::process::id()));
    let command = format!("touch {}", marker.display());
    let pickle = Asm::new()
        .op(b"}(")
        .string("cfg")
        .global("posix", "system")
        .op(b"(")
        .string(&command)
        .op(b"tR")
        .string("args")
        .global("argparse", "Namespace")
        .op(b")\x81}(")
        .string("lr")
        .op(b"G")
        .op(&0.5_f64.to_be_bytes())
        .string("name")
        .string("x")
        .op(b"ub")
        .string("w")
        .tensor("0", 1, 0, &[1], &[1])
        .op(b"u")
        .end();
    let dir = TestDir::new();
    let saved = read(&dir.saved(&pickle, &[("0", &floats(&[1.0]))])).unwrap();
    let called = saved.root().get("cfg").unwrap();
    assert!(matches!(called.node(), Node::Object { class, .. } if class == "posix.system"));
    assert!(!marker.exists(), "the command was executed");
    assert_eq!(saved.root().get("args").unwrap().to_json(), json!({"lr": 0.5, "name": "x"}));
    assert_eq!(saved.tensors(saved.state_dict()).unwrap().len(), 1);
}

#[test]
fn converts_cyclic_omegaconf_containers_to_json() {
    // {"cfg": DictConfig{_content: {"dim": IntegerNode{_val: 8, _parent: the outer container}}}}
    let pickle = Asm::new()
        .op(b"}(")
        .string("cfg")
        .global("omegaconf", "DictConfig")
        .op(b")\x81q\x01}(")
        .string("_content")
        .op(b"}")
        .string("dim")
        .global("omegaconf", "IntegerNode")
        .op(b")\x81}(")
        .string("_val")
        .op(b"K\x08")
        .string("_parent")
        .op(b"h\x01ubsub")
        .string("again")
        .op(b"h\x01u")
        .end();
    let dir = TestDir::new();
    let saved = read(&dir.saved(&pickle, &[])).unwrap();
    let expected = json!({"cfg": {"dim": 8}, "again": {"dim": 8}});
    assert_eq!(saved.root().to_json(), expected);

    // A dict that contains itself.
    let cycle = Asm::new().op(b"}q\x00").string("self").op(b"h\x00s").end();
    let saved = read(&dir.saved(&cycle, &[])).unwrap();
    assert!(saved.root().to_json().to_string().len() < 1000);
    assert_error(saved.tensors(saved.root()), &["no state dict"]);
}

#[test]
fn rejects_tensors_that_exceed_their_storage() {
    let dir = TestDir::new();
    let storage = floats(&[0.0; 4]);
    for (size, stride, offset) in [
        (&[5][..], &[1][..], 0),
        (&[2, 2], &[4, 1], 0),
        (&[4], &[1], 1),
        (&[2], &[-1], 0),
        (&[-1], &[1], 0),
        (&[i32::MAX, i32::MAX, i32::MAX], &[1, 1, 1], 0),
        (&[1000], &[0], 0),
    ] {
        let tensor = Asm::new().op(b"}").string("w").tensor("0", 4, offset, size, stride);
        let path = dir.saved(&tensor.op(b"s").end(), &[("0", &storage)]);
        assert_error(tensors(&path), &["`w`", "exceeds its storage of 4"]);
    }
    // A storage that declares more elements than it has.
    let pickle = Asm::new().op(b"}").string("w").tensor("0", 1 << 30, 0, &[4], &[1]).op(b"s").end();
    assert_error(tensors(&dir.saved(&pickle, &[("0", &storage)])), &["storage 0", "truncated"]);
}

#[test]
fn invalid_files_get_one_line_errors() {
    let dir = TestDir::new();
    let pickle = Asm::new().op(b"}").string("w").tensor("0", 64, 0, &[64], &[1]).op(b"s").end();
    let path = dir.saved(&pickle, &[("0", &[0; 256])]);
    let complete = std::fs::read(&path).unwrap();
    for len in [0, 3, 40, complete.len() / 2, complete.len() - 1] {
        std::fs::write(&path, &complete[..len]).unwrap();
        assert_error(tensors(&path), &["model.pt: "]);
    }
    std::fs::write(&path, "not a model").unwrap();
    assert_error(read(&path), &["neither a safetensors nor a torch.save file"]);
    write_zip(&path, &[("readme.txt", b"hello")], CompressionMethod::Stored);
    assert_error(read(&path), &["without data.pkl"]);
    for (opcodes, expected) in [
        (&b"\xff"[..], "unknown opcode"),
        (b"R", "stack underflow"),
        (b"h\x05", "before it is set"),
        (b"X\xff\xff\xff\x7fab", "truncated"),
        (b"e", "mark is missing"),
    ] {
        assert_error(read(&dir.saved(&Asm::new().op(opcodes).0, &[])), &[expected]);
    }
}

#[test]
fn rejects_zip_bombs_before_decompression() {
    let dir = TestDir::new();
    let path = dir.0.path().join("bomb.pt");
    let zeros = vec![0; 64 << 20];
    let pickle = Asm::new().op(b"}.").0;
    let entries: Entries<'_> = &[("a/data.pkl", &pickle), ("a/data/0", &zeros)];
    write_zip(&path, entries, CompressionMethod::Deflated);
    assert_error(read(&path), &["declare 67108", "16 times"]);

    // A wrong size: 100 bytes, of which the central directory declares 50.
    let pickle = Asm::new().op(b"}").string("w").tensor("0", 8, 0, &[8], &[1]).op(b"s").end();
    let path = dir.saved(&pickle, &[("0", &[7; 100])]);
    let mut bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() - 4 {
        if bytes[at..at + 4] == 100_u32.to_le_bytes() {
            bytes[at..at + 4].copy_from_slice(&50_u32.to_le_bytes());
        }
    }
    std::fs::write(&path, bytes).unwrap();
    assert_error(tensors(&path), &["model.pt"]);
}

#[test]
fn shared_references_are_not_expanded() {
    // 60 nested lists, each with the previous one twice: 2⁶⁰ values if expanded.
    let mut asm = Asm::new().op(b"}").string("x").op(b"]q\x00");
    for _ in 0..60 {
        asm = asm.op(b"0](h\x00h\x00eq\x00");
    }
    let dir = TestDir::new();
    let saved = read(&dir.saved(&asm.op(b"s").end(), &[])).unwrap();
    let _ = saved.root().to_json();
    assert_error(saved.tensors(saved.root()), &["no state dict"]);
}

/// The format of PyTorch before 1.6: consecutive pickles, then storages.
#[test]
fn reads_legacy_files() {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let mut bytes = magic.to_vec();
    bytes.extend(Asm::new().int(1001).end());
    bytes.extend(Asm::new().op(b"}").end());
    bytes.extend(Asm::new().op(b"}").string("w").tensor("77", 3, 1, &[2], &[1]).op(b"s").end());
    bytes.extend(Asm::new().op(b"](").string("77").op(b"e").end());
    bytes.extend(3_u64.to_le_bytes());
    bytes.extend(floats(&[1.0, 2.0, 3.0]));
    let dir = TestDir::new();
    let path = dir.0.path().join("old.pt");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(values(&tensors(&path).unwrap()["w"]), [2.0, 3.0]);
    for len in [20, 40, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert_error(tensors(&path), &["old.pt: not a complete torch.save file"]);
    }
}

proptest! {
    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut nodes = Vec::new();
        let _ = machine::run(&bytes, &mut nodes);
        let dir = TestDir::new();
        let _ = tensors(&dir.saved(&bytes, &[("0", &[0; 64])]));
    }

    #[test]
    fn corrupt_files_do_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        inside in any::<bool>(),
    ) {
        let pickle = Asm::new()
            .op(b"}(")
            .string("a").tensor("0", 16, 0, &[4, 4], &[4, 1])
            .string("b").tensor("0", 16, 4, &[3], &[2])
            .op(b"u")
            .end();
        let dir = TestDir::new();
        let mutate = |bytes: &mut Vec<u8>| {
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
        };
        let mut changed = pickle;
        if inside {
            mutate(&mut changed);
        }
        let path = dir.saved(&changed, &[("0", &[0; 64])]);
        if !inside {
            let mut bytes = std::fs::read(&path).unwrap();
            mutate(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
        }
        if let Ok(tensors) = tensors(&path) {
            for tensor in tensors.values() {
                let _ = tensor.to_kind(Kind::Float).contiguous();
            }
        }
    }
}
