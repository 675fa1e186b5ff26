//! `import` and `export`: files of fairseq and transformers, the hub, and invalid checkpoints.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use support::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn golden(name: &str) -> PathBuf {
    repository().join("tests/goldens").join(name)
}

fn import(checkpoint: &str, out: &Path) -> Command {
    program(&["import", checkpoint, "--out", out.to_str().unwrap()])
}

fn export(model: &Path, to: &str, out: &Path) -> Command {
    program(&["export", model.to_str().unwrap(), "--to", to, "--out", out.to_str().unwrap()])
}

/// Runs the command and expects success. Returns its standard output.
fn stdout_of(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn import_and_export_round_trip() {
    let dir = temp_dir();
    let dir = dir.path();
    let ours = dir.join("ours");
    let printed = stdout_of(&mut import(path(&golden("fairseq_v1_audio.pt")), &ours));
    assert!(
        printed.contains("fairseq's data2vec 1.0 for speech: 4 blocks of width 48"),
        "{printed}"
    );
    assert!(printed.contains("skipped 74 (_ema: 72, final_proj: 2)"), "{printed}");
    let sweep = repository().join("data/fixtures/sweep.flac");
    succeed(&mut extract(&ours, &[&sweep], &dir.join("sweep.npy")));

    for to in ["hugging-face", "fairseq"] {
        let theirs = dir.join(to);
        succeed(&mut export(&ours, to, &theirs));
        let back = dir.join(format!("{to}-back"));
        succeed(import(path(&theirs), &back).args(["--heads", "4"]));
        for file in ["encoder.safetensors", "mask_token.safetensors"] {
            let read = |dir: &Path| fs::read(dir.join(file)).unwrap();
            assert!(read(&ours) == read(&back), "{to}: {file}");
        }
    }
    succeed(&mut export(&ours, "safetensors", &dir.join("plain")));
    // The teacher has other weights.
    let teacher = dir.join("teacher");
    succeed(import(path(&golden("fairseq_v1_audio.pt")), &teacher).arg("--teacher"));
    let read = |dir: &Path| fs::read(dir.join("encoder.safetensors")).unwrap();
    assert!(read(&ours) != read(&teacher));
    // The output directory is not empty.
    fail(&mut import(path(&golden("fairseq_v1_audio.pt")), &ours), &["is not empty", "--out"]);
    fail(&mut export(&ours, "fairseq", &teacher), &["is not empty"]);
    // transformers lacks data2vec 2.0.
    succeed(&mut import(path(&golden("fairseq_v2_image.pt")), &dir.join("v2")));
    let words = ["features.positions", "transformers supports only data2vec 1.0", "--to fairseq"];
    fail(&mut export(&dir.join("v2"), "hugging-face", &dir.join("no")), &words);
    assert!(!dir.join("no").exists());
}

#[test]
fn rejects_invalid_checkpoints() {
    let dir = temp_dir();
    let dir = dir.path();
    let out = dir.join("out");
    let refuse = |checkpoint: &Path, words: &[&str]| {
        fail(&mut import(path(checkpoint), &out), words);
        assert!(!out.join("encoder.toml").exists());
    };
    refuse(&dir.join("nothing.pt"), &["nothing.pt", "no such file or directory"]);
    refuse(dir, &["neither model.safetensors nor pytorch_model.bin"]);
    refuse(
        &repository().join("README.md"),
        &["README.md", "neither a safetensors nor a torch.save file"],
    );
    refuse(
        &repository().join("data/fixtures/sweep.flac"),
        &["sweep.flac", "neither a safetensors nor"],
    );

    let complete = fs::read(golden("fairseq_v1_audio.pt")).unwrap();
    let cut = dir.join("cut.pt");
    fs::write(&cut, &complete[..complete.len() / 2]).unwrap();
    refuse(&cut, &["cut.pt", "not a complete torch.save file"]);

    // A pickle that calls os.system.
    let hostile = dir.join("hostile.pt");
    let marker = dir.join("called");
    let command = format!("touch {}", marker.display());
    let mut pickle = b"\x80\x02cposix\nsystem\n(X".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"tR.");
    fs::write(&hostile, zip_with_entry("archive/data.pkl", &pickle)).unwrap();
    refuse(&hostile, &["hostile.pt", "contains no named tensors"]);
    assert!(!marker.exists(), "the pickle was executed");

    // Tensors of another model.
    let other = golden("v2_text.noise.safetensors");
    refuse(&other, &["unknown checkpoint layout", "noise.0"]);
    let model = golden("beit_v1_image.pth");
    fail(
        import(path(&model), &out).args(["--heads", "5"]),
        &["transformer.heads", "does not divide"],
    );
    let text = golden("fairseq_v2_text.pt");
    let wrong = dir.join("tokenizer.json");
    fs::write(&wrong, "{}").unwrap();
    fail(import(path(&text), &out).args(["--tokenizer", path(&wrong)]), &["tokenizer.json"]);
}

/// Encodes a zip file with one uncompressed entry.
fn zip_with_entry(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut checksum = flate2::Crc::new();
    checksum.update(bytes);
    let (crc, len) = (checksum.sum().to_le_bytes(), (bytes.len() as u32).to_le_bytes());
    let name_len = (name.len() as u16).to_le_bytes();
    let fields =
        [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &crc, &len, &len, &name_len, &[0, 0]].concat();
    let local = [b"PK\x03\x04", fields.as_slice(), name.as_bytes(), bytes].concat();
    let central = [b"PK\x01\x02", &[20, 0][..], &fields, &[0; 14], name.as_bytes()].concat();
    let (at, size) = ((local.len() as u32).to_le_bytes(), (central.len() as u32).to_le_bytes());
    let end = [b"PK\x05\x06", &[0, 0, 0, 0, 1, 0, 1, 0][..], &size, &at, &[0, 0]].concat();
    [local, central, end].concat()
}

/// Starts a hub with one model, facebook/tiny. Returns its address.
fn hub(files: BTreeMap<String, Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files = Arc::new(files);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let files = Arc::clone(&files);
            std::thread::spawn(move || respond(stream, &files));
        }
    });
    address
}

fn respond(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>) {
    let (mut request, mut range) = (String::new(), None);
    for line in BufReader::new(stream.try_clone().unwrap()).lines() {
        let line = line.unwrap_or_default();
        match line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            _ if line.is_empty() => break,
            _ if request.is_empty() => request = line,
            Some(value) => range = value.split_once('-').map(|(a, b)| (a.to_owned(), b.to_owned())),
            None => {}
        }
    }
    let asked = request.split(' ').nth(1).unwrap_or_default();
    let names: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
    let info = serde_json::json!({ "sha": COMMIT, "siblings": names }).to_string().into_bytes();
    let body = match asked.strip_prefix("/facebook/tiny/resolve/main/") {
        None if asked == "/api/models/facebook/tiny/revision/main" => Some(&info),
        None => None,
        Some(name) => files.get(name),
    };
    let Some(body) = body else {
        let _ = stream
            .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    };
    let (status, facts, part) = match range {
        None => ("200 OK", String::new(), body.as_slice()),
        Some((from, to)) => {
            let from: usize = from.parse().unwrap();
            let to = to.parse().map_or(body.len(), |to: usize| to + 1).min(body.len());
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, body.len());
            ("206 Partial Content", range, &body[from..to])
        }
    };
    let etag = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nx-repo-commit: {COMMIT}\r\nETag: \"{etag}\"\r\n\
         {facts}Connection: close\r\n\r\n",
        part.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(part));
}

#[test]
fn imports_from_hub_and_cache() {
    let dir = temp_dir();
    let dir = dir.path();
    let (ours, theirs, cache) = (dir.join("ours"), dir.join("theirs"), dir.join("cache"));
    succeed(&mut import(path(&golden("fairseq_v1_audio.pt")), &ours));
    succeed(&mut export(&ours, "hugging-face", &theirs));
    let files = fs::read_dir(&theirs).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    });
    let address = hub(files.collect());
    let from_hub = |name: &str, out: &str, offline: &str| {
        let mut command = import(name, &dir.join(out));
        command.env("HF_HOME", &cache).env("HF_ENDPOINT", &address).env("HF_HUB_OFFLINE", offline);
        command.env_remove("HF_TOKEN");
        command
    };
    fail(
        &mut from_hub("facebook/tiny", "a", "1"),
        &["facebook/tiny", "not in the cache", "HF_HUB_OFFLINE"],
    );
    fail(&mut from_hub("facebook/none", "a", "0"), &["facebook/none", "cannot be downloaded"]);
    let printed = stdout_of(&mut from_hub("facebook/tiny", "a", "0"));
    assert!(printed.contains("Hugging Face's Data2VecAudioModel"), "{printed}");
    // Now it is in the cache.
    let mut offline = from_hub("facebook/tiny", "b", "1");
    succeed(offline.env("HF_ENDPOINT", "http://127.0.0.1:9"));
    let read = |dir: PathBuf| fs::read(dir.join("encoder.safetensors")).unwrap();
    assert!(read(dir.join("a")) == read(ours) && read(dir.join("a")) == read(dir.join("b")));
}
