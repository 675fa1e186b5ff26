//! Files of `torch.save`, whole, broken and hostile.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::json;
use tch::Tensor;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

/// Pickle opcodes by hand.
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

    fn text(self, text: &str) -> Self {
        let len = (text.len() as u32).to_le_bytes();
        self.op(b"X").op(&len).op(text.as_bytes())
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

    /// A tensor of f32 in the storage `key` of `numel` numbers.
    fn tensor(self, key: &str, numel: i32, offset: i32, size: &[i32], stride: &[i32]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .text("storage")
            .global("torch", "FloatStorage")
            .text(key)
            .text("cpu")
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

struct Folder(tempfile::TempDir);

impl Folder {
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

fn error<T: std::fmt::Debug>(result: Result<T>, expected: &[&str]) {
    let text = result.unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    for part in expected {
        assert!(text.contains(part), "{text:?} without {part:?}");
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.contiguous().flatten(0, -1)).unwrap()
}

#[test]
fn tensors_in_nested_dicts_strided_and_shared() {
    let pickle = Asm::new()
        .op(b"}(")
        .text("model")
        .op(b"}(")
        .text("weight")
        .tensor("0", 6, 0, &[2, 3], &[3, 1])
        .text("transposed")
        .tensor("0", 6, 0, &[3, 2], &[1, 3])
        .text("end")
        .tensor("0", 6, 4, &[2], &[1])
        .text("_ema")
        .op(b"}")
        .text("weight")
        .tensor("1", 1, 0, &[], &[])
        .op(b"s")
        .text("version")
        .int(3)
        .op(b"u")
        .text("args")
        .op(b"Nu")
        .end();
    let folder = Folder::new();
    let storage = floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let path = folder.saved(&pickle, &[("0", &storage), ("1", &floats(&[7.0]))]);
    let tensors = tensors(&path).unwrap();
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    assert_eq!(names, ["_ema.weight", "end", "transposed", "weight"]);
    assert_eq!(tensors["weight"].size(), [2, 3]);
    assert_eq!(values(&tensors["transposed"]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(values(&tensors["end"]), [4.0, 5.0]);
    assert_eq!(values(&tensors["_ema.weight"]), [7.0]);
}

#[test]
fn deflated_entries_are_read_too() {
    let folder = Folder::new();
    let path = folder.0.path().join("x.pt");
    let pickle = Asm::new().op(b"}").text("w").tensor("0", 2, 0, &[2], &[1]).op(b"s").end();
    let storage = floats(&[1.5, 2.5]);
    let entries: Entries<'_> = &[("a/data.pkl", &pickle), ("a/data/0", &storage)];
    write_zip(&path, entries, CompressionMethod::Deflated);
    assert_eq!(values(&tensors(&path).unwrap()["w"]), [1.5, 2.5]);
}

#[test]
fn what_would_be_called_stays_a_name() {
    let marker = std::env::temp_dir().join(format!("data2vec-pickle-{}", std::process::id()));
    let command = format!("touch {}", marker.display());
    let pickle = Asm::new()
        .op(b"}(")
        .text("cfg")
        .global("posix", "system")
        .op(b"(")
        .text(&command)
        .op(b"tR")
        .text("args")
        .global("argparse", "Namespace")
        .op(b")\x81}(")
        .text("lr")
        .op(b"G")
        .op(&0.5_f64.to_be_bytes())
        .text("name")
        .text("x")
        .op(b"ub")
        .text("w")
        .tensor("0", 1, 0, &[1], &[1])
        .op(b"u")
        .end();
    let folder = Folder::new();
    let saved = read(&folder.saved(&pickle, &[("0", &floats(&[1.0]))])).unwrap();
    let called = saved.root().get("cfg").unwrap();
    assert_eq!(called.class(), Some("posix.system"));
    assert!(!marker.exists(), "it was called");
    assert_eq!(saved.root().get("args").unwrap().to_json(), json!({"lr": 0.5, "name": "x"}));
    assert_eq!(saved.tensors(saved.state_dict()).unwrap().len(), 1);
}

#[test]
fn containers_of_omegaconf_are_looked_into_though_they_hold_each_other() {
    // {"cfg": DictConfig{_content: {"dim": IntegerNode{_val: 8, _parent: the outer one}}}}
    let pickle = Asm::new()
        .op(b"}(")
        .text("cfg")
        .global("omegaconf", "DictConfig")
        .op(b")\x81q\x01}(")
        .text("_content")
        .op(b"}")
        .text("dim")
        .global("omegaconf", "IntegerNode")
        .op(b")\x81}(")
        .text("_val")
        .op(b"K\x08")
        .text("_parent")
        .op(b"h\x01ubsub")
        .text("again")
        .op(b"h\x01u")
        .end();
    let folder = Folder::new();
    let saved = read(&folder.saved(&pickle, &[])).unwrap();
    let expected = json!({"cfg": {"dim": 8}, "again": {"dim": 8}});
    assert_eq!(saved.root().to_json(), expected);

    // A dict in itself.
    let circle = Asm::new().op(b"}q\x00").text("self").op(b"h\x00s").end();
    let saved = read(&folder.saved(&circle, &[])).unwrap();
    assert!(saved.root().to_json().to_string().len() < 1000);
    error(saved.tensors(saved.root()), &["no state dict"]);
}

#[test]
fn tensors_that_reach_beyond_their_storage_are_named() {
    let folder = Folder::new();
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
        let tensor = Asm::new().op(b"}").text("w").tensor("0", 4, offset, size, stride);
        let path = folder.saved(&tensor.op(b"s").end(), &[("0", &storage)]);
        error(tensors(&path), &["`w`", "beyond its storage of 4"]);
    }
    // A storage that claims to be larger than it is.
    let pickle = Asm::new().op(b"}").text("w").tensor("0", 1 << 30, 0, &[4], &[1]).op(b"s").end();
    error(tensors(&folder.saved(&pickle, &[("0", &storage)])), &["storage 0", "cut short"]);
}

#[test]
fn broken_files_get_one_line() {
    let folder = Folder::new();
    let pickle = Asm::new().op(b"}").text("w").tensor("0", 64, 0, &[64], &[1]).op(b"s").end();
    let path = folder.saved(&pickle, &[("0", &[0; 256])]);
    let whole = std::fs::read(&path).unwrap();
    for len in [0, 3, 40, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        error(tensors(&path), &["model.pt: "]);
    }
    std::fs::write(&path, "not a model").unwrap();
    error(read(&path), &["neither safetensors nor a file of torch.save"]);
    write_zip(&path, &[("readme.txt", b"hello")], CompressionMethod::Stored);
    error(read(&path), &["no data.pkl"]);
    for (opcodes, expected) in [
        (&b"\xff"[..], "no opcode"),
        (b"R", "takes more than it puts"),
        (b"h\x05", "before it is made"),
        (b"X\xff\xff\xff\x7fab", "cut short"),
        (b"e", "mark is missing"),
    ] {
        error(read(&folder.saved(&Asm::new().op(opcodes).0, &[])), &[expected]);
    }
}

#[test]
fn zip_bombs_are_refused_before_they_unpack() {
    let folder = Folder::new();
    let path = folder.0.path().join("bomb.pt");
    let zeros = vec![0; 64 << 20];
    let pickle = Asm::new().op(b"}.").0;
    let entries: Entries<'_> = &[("a/data.pkl", &pickle), ("a/data/0", &zeros)];
    write_zip(&path, entries, CompressionMethod::Deflated);
    error(read(&path), &["claim to unpack to 67108", "packed so tightly"]);

    // A size that lies: 100 bytes, of which the directory says that they are 50.
    let pickle = Asm::new().op(b"}").text("w").tensor("0", 8, 0, &[8], &[1]).op(b"s").end();
    let path = folder.saved(&pickle, &[("0", &[7; 100])]);
    let mut bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() - 4 {
        if bytes[at..at + 4] == 100_u32.to_le_bytes() {
            bytes[at..at + 4].copy_from_slice(&50_u32.to_le_bytes());
        }
    }
    std::fs::write(&path, bytes).unwrap();
    error(tensors(&path), &["model.pt"]);
}

#[test]
fn references_do_not_multiply() {
    // Lists of two of the last list, 60 times: 2⁶⁰ values, if they were followed.
    let mut asm = Asm::new().op(b"}").text("x").op(b"]q\x00");
    for _ in 0..60 {
        asm = asm.op(b"0](h\x00h\x00eq\x00");
    }
    let folder = Folder::new();
    let saved = read(&folder.saved(&asm.op(b"s").end(), &[])).unwrap();
    let _ = saved.root().to_json();
    error(saved.tensors(saved.root()), &["no state dict"]);
}

/// As PyTorch before 1.6 wrote: pickles one after the other, then storages.
#[test]
fn older_files_are_read() {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let mut bytes = magic.to_vec();
    bytes.extend(Asm::new().int(1001).end());
    bytes.extend(Asm::new().op(b"}").end());
    bytes.extend(Asm::new().op(b"}").text("w").tensor("77", 3, 1, &[2], &[1]).op(b"s").end());
    bytes.extend(Asm::new().op(b"](").text("77").op(b"e").end());
    bytes.extend(3_u64.to_le_bytes());
    bytes.extend(floats(&[1.0, 2.0, 3.0]));
    let folder = Folder::new();
    let path = folder.0.path().join("old.pt");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(values(&tensors(&path).unwrap()["w"]), [2.0, 3.0]);
    for len in [20, 40, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        error(tensors(&path), &["old.pt: not a whole file"]);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut nodes = Vec::new();
        let _ = machine::run(&bytes, &mut nodes);
        let folder = Folder::new();
        let _ = tensors(&folder.saved(&bytes, &[("0", &[0; 64])]));
    }

    #[test]
    fn no_change_to_a_good_file_makes_it_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        inside in any::<bool>(),
    ) {
        let pickle = Asm::new()
            .op(b"}(")
            .text("a").tensor("0", 16, 0, &[4, 4], &[4, 1])
            .text("b").tensor("0", 16, 4, &[3], &[2])
            .op(b"u")
            .end();
        let folder = Folder::new();
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
        let path = folder.saved(&changed, &[("0", &[0; 64])]);
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
