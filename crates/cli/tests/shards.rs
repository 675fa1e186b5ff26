//! Shards: training on them gives the same bits as training on the packed directory. Invalid shards
//! are reported in one line.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::*;

/// Packs `data` into shards of `size` in a sibling directory `shards`. Returns the directory.
fn pack(data: &Path, modality: &str, size: &str) -> PathBuf {
    let out = data.with_file_name("shards");
    let mut command = program(&["data", "pack", "--modality", modality, "--shard-size", size]);
    let printed = output(command.arg(data).arg("--out").arg(&out));
    assert!(printed.status.success(), "{}", stderr(&printed));
    let hint = format!("data2vec pretrain RECIPE --data {}", out.display());
    assert!(stdout(&printed).contains(&hint), "{}", stdout(&printed));
    out
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Returns digest and number of the examples of a run.
fn examples(run: &Path) -> (Value, Value) {
    let record = fs::read_to_string(run.join("run.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    (record["data_sha256"].clone(), record["examples"].clone())
}

type Pretrain = fn(&Path, &Path, &[&str]) -> Command;

/// Asserts that training on a directory, on its shards, and on a pattern of the shards gives the
/// same bits.
fn assert_equals_directory(data: &Path, shards: &Path, pretrain: Pretrain) {
    let run = |name: &str| data.with_file_name(name);
    succeed(&mut pretrain(data, &run("of-directory"), &[]));
    succeed(&mut pretrain(shards, &run("of-shards"), &[]));
    assert_same(&run("of-directory"), &run("of-shards"));
    assert_eq!(examples(&run("of-directory")), examples(&run("of-shards")));
    let last = names(shards).len() - 1;
    assert!(last > 0, "several shards are needed");
    let pattern = shards.join(format!("data-{{000000..{last:06}}}.tar"));
    succeed(&mut pretrain(&pattern, &run("of-pattern"), &[]));
    assert_same(&run("of-directory"), &run("of-pattern"));
}

#[test]
fn speech_shards_equal_their_directory() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    // Dots in names, where WebDataset's keys would end.
    fs::rename(data.join("speaker/07.wav"), data.join("speaker/07.5 of 100%.wav")).unwrap();
    fs::rename(data.join("speaker/11.wav"), data.join("11.wav")).unwrap();
    fs::write(data.join("speaker/03.txt"), "Three.").unwrap();
    let shards = pack(&data, "speech", "700kB");
    assert_equals_directory(&data, &shards, pretrain);

    // Packing is deterministic and overwrites nothing.
    let again = dir.path().join("again");
    let pack = |out: &Path| {
        let mut command =
            program(&["data", "pack", "--modality", "speech", "--shard-size", "700kB"]);
        command.arg(&data).arg("--out").arg(out);
        command
    };
    succeed(&mut pack(&again));
    for name in names(&shards) {
        assert!(fs::read(shards.join(&name)).unwrap() == fs::read(again.join(&name)).unwrap());
    }
    fail(&mut pack(&again), &["again", "is not empty"]);

    // The statistics are the same too.
    let stats = |data: &Path| {
        let out = dir.path().join("stats.json");
        let mut command = program(&["data", "stats", "--modality", "speech"]);
        succeed(command.arg(data).arg("--json").arg(&out).env("XDG_CACHE_HOME", dir.path()));
        let mut stats: Value = serde_json::from_str(&fs::read_to_string(out).unwrap()).unwrap();
        stats.as_object_mut().unwrap().remove("data");
        stats
    };
    assert_eq!(stats(&data), stats(&shards));
    assert_eq!(stats(&data)["examples"], 20);
}

#[test]
fn resumes_and_distributes_on_shards() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    let (shards, uninterrupted, cut) =
        (pack(&data, "speech", "700kB"), dir.path().join("uninterrupted"), dir.path().join("cut"));
    succeed(&mut pretrain(&shards, &uninterrupted, &[]));
    copy_dir(&uninterrupted, &cut);
    fs::remove_dir_all(checkpoint(&cut, 12)).unwrap();
    for made in ["encoder", "cache"] {
        fs::remove_dir_all(cut.join(made)).unwrap();
    }
    let printed = succeed(&mut pretrain(&shards, &cut, &[]));
    assert!(printed.contains("resuming from step 8 "), "{printed}");
    assert_same(&uninterrupted, &cut);

    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let rank = |data: &Path, out: &Path, rank: &str| {
        let mut command = pretrain(data, out, &["train.accumulate=2", "train.steps=4"]);
        command.args(["--dist-timeout", "20"]);
        for (name, value) in [("RANK", rank), ("LOCAL_RANK", rank), ("MASTER_PORT", &port)] {
            command.env(name, value);
        }
        command.env("WORLD_SIZE", "2").env("LOCAL_WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1");
        command
    };
    let run = |data: &Path, name: &str| {
        let out = dir.path().join(name);
        let both = ["0", "1"].map(|number| rank(data, &out, number).spawn().unwrap());
        for child in both {
            let output = finish(child);
            assert!(output.status.success(), "{}", stderr(&output));
        }
        out
    };
    assert_same(&run(&data, "two-of-directory"), &run(&shards, "two-of-shards"));
}

/// Writes images of two classes, a directory per class.
fn images(dir: &Path) -> PathBuf {
    let data = dir.join("images");
    for (class, level) in [("bright", 150), ("dark", 20)] {
        fs::create_dir_all(data.join(class)).unwrap();
        for i in 0..20_u8 {
            let noise = move |at: u8| level + (at.wrapping_mul(31) ^ i.wrapping_mul(17)) % 60;
            fs::write(data.join(class).join(format!("{i:02}.bmp")), bmp(noise)).unwrap();
        }
    }
    data
}

#[test]
fn image_shards_keep_labels() {
    let dir = temp_dir();
    let data = images(dir.path());
    let shards = pack(&data, "vision", "20kB");
    assert_equals_directory(&data, &shards, pretrain_images);

    let encoder = dir.path().join("of-directory/encoder");
    let tune = |data: &Path, name: &str| {
        let out = dir.path().join(name);
        let mut command = program(&["finetune"]);
        command.arg(repository().join("recipes/finetune-vision-tiny.toml"));
        command.arg("--encoder").arg(&encoder).arg("--data").arg(data).arg("--out").arg(&out);
        command.args(["--device", "cpu"]);
        for set in [
            "train.steps=12",
            "train.held_out=0.2",
            "train.eval_every=6",
            "train.log_every=3",
            "train.save_every=6",
            "train.batch=8",
            "schedule.warmup_steps=2",
            "schedule.lr=1e-2",
        ] {
            command.args(["--set", set]);
        }
        succeed(&mut command);
        out
    };
    let [one, other] = [tune(&data, "tuned-of-directory"), tune(&shards, "tuned-of-shards")];
    assert_eq!(timeless_metrics(&one), timeless_metrics(&other));
    assert_eq!(fs::read_to_string(one.join("labels.txt")).unwrap(), "bright\ndark");
    let head = "model/head.safetensors";
    assert!(fs::read(one.join(head)).unwrap() == fs::read(other.join(head)).unwrap());

    // evaluate and probe accept shards too.
    let stdout_of = |verb: &str, flag: &str, model: &Path, data: &Path| {
        let mut command = program(&[verb, "--device", "cpu", flag]);
        command.arg(model).arg("--data").arg(data).env("XDG_CACHE_HOME", dir.path().join("home"));
        let output = output(&mut command);
        assert!(output.status.success(), "{}", stderr(&output));
        let printed = stdout(&output);
        printed.replace(data.to_str().unwrap(), "")
    };
    let model = one.join("model");
    assert_eq!(
        stdout_of("evaluate", "--model", &model, &data),
        stdout_of("evaluate", "--model", &model, &shards)
    );
    assert_eq!(
        stdout_of("probe", "--encoder", &encoder, &data),
        stdout_of("probe", "--encoder", &encoder, &shards)
    );

    // Existing splits are packed separately.
    let root = dir.path().join("root");
    copy_dir(&data, &root.join("train"));
    copy_dir(&data, &root.join("val"));
    let mut command = program(&["data", "pack", "--modality", "vision"]);
    command.arg(&root).arg("--out").arg(dir.path().join("no"));
    fail(&mut command, &["root", "pack each"]);
}

#[test]
fn text_shards_equal_their_directory() {
    let dir = temp_dir();
    let data = texts(dir.path());
    fs::create_dir_all(data.join("more.d")).unwrap();
    fs::write(
        data.join("more.d/lines.v2.jsonl"),
        "{\"text\": \"one two\"}\n{\"text\": \"three\"}\n",
    )
    .unwrap();
    let zipped = gzip(&fs::read(data.join("03.txt")).unwrap());
    fs::write(data.join("03.txt.gz"), zipped).unwrap();
    fs::remove_file(data.join("03.txt")).unwrap();
    let shards = pack(&data, "nlp", "20kB");
    assert_equals_directory(&data, &shards, pretrain_texts);
}

#[test]
fn skips_counts_and_lists_broken_examples() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    let path = data.join("speaker/05.wav");
    let complete = fs::read(&path).unwrap();
    // The header is valid: only reading all samples finds the error.
    fs::write(&path, wav(&vec![f32::NAN; complete.len() / 8])).unwrap();
    let shards = pack(&data, "speech", "700kB");
    let out = dir.path().join("run");
    let printed = succeed(&mut pretrain(&shards, &out, &["train.max_bad_examples=1"]));
    assert!(printed.contains("skipped") && printed.contains("speaker/05.wav"), "{printed}");
    let listed = fs::read_to_string(out.join("bad_examples.txt")).unwrap();
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(listed.contains("speaker/05.wav: sample at 0.000 s is NaN"), "{listed}");
    let last = metrics(&out).into_iter().rfind(|line| line["kind"] == "train").unwrap();
    assert_eq!(last["bad_examples"], 1);
    let none = dir.path().join("none");
    fail(
        &mut pretrain(&shards, &none, &["train.max_bad_examples=0"]),
        &["1 unusable examples", "05.wav"],
    );
}

/// Writes a tar archive of files.
fn tar(path: &Path, files: &[(&str, Vec<u8>)]) {
    let mut bytes = Vec::new();
    for (name, content) in files {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(header);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    fs::write(path, bytes).unwrap();
}

#[test]
fn rejects_invalid_shards() {
    let dir = temp_dir();
    let place = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let out = dir.path().join("run");
    let refuse = |data: &Path, words: &[&str]| drop(fail(&mut pretrain(data, &out, &[]), words));
    let recording = |seed| wav(&sound(1.0, seed));

    let cut = place("cut");
    tar(&cut.join("a.tar"), &[("1.wav", recording(1)), ("2.wav", recording(2))]);
    let bytes = fs::read(cut.join("a.tar")).unwrap();
    fs::write(cut.join("a.tar"), &bytes[..bytes.len() / 2 + 7_000]).unwrap();
    refuse(&cut, &["a.tar", "truncated"]);

    refuse(&place("empty"), &["empty", "no audio in it"]);
    refuse(&dir.path().join("x-{000..003}.tar"), &["x-000.tar", "No such file"]);
    refuse(&dir.path().join("none-*.tar"), &["none-*.tar", "no shards found"]);

    let other = place("other");
    tar(&other.join("a.tar"), &[("1.jpg", vec![1]), ("1.txt", vec![b'a'])]);
    refuse(&other, &["no usable example", "a.tar/1: has jpg, txt, none of wav"]);

    let twice = place("twice");
    let same = [("1.wav", recording(1)), ("2.wav", recording(2)), ("1.wav", recording(3))];
    tar(&twice.join("a.tar"), &same);
    refuse(&twice, &["a.tar/1", "duplicate"]);

    // An entry without a recording is an unusable example.
    let incomplete = place("incomplete");
    let names: Vec<String> = (0..19).map(|i| format!("{i}.wav")).collect();
    let mut files: Vec<(&str, Vec<u8>)> =
        (0..).zip(&names).map(|(i, name)| (name.as_str(), recording(i))).collect();
    files.push(("x.txt", b"alone".to_vec()));
    tar(&incomplete.join("a.tar"), &files);
    let mut strict = pretrain(&incomplete, &out, &["train.max_bad_examples=0"]);
    fail(&mut strict, &["1 unusable examples", "a.tar/x: has txt, none of wav"]);
    let printed = succeed(&mut pretrain(&incomplete, &out, &["train.max_bad_examples=1"]));
    assert!(printed.contains("a.tar/x: has txt, none of wav"), "{printed}");
    let listed = fs::read_to_string(out.join("bad_examples.txt")).unwrap();
    assert!(listed.contains("a.tar/x: has txt, none of wav"), "{listed}");
}

/// Labelled texts as columns of a table, and as fields of tar shards.
#[test]
fn labelled_text_shards_equal_their_table() {
    let dir = temp_dir();
    let dir = dir.path();
    let run = dir.join("run");
    succeed(&mut pretrain_texts(&texts(dir), &run, &["train.steps=4"]));
    let rows: Vec<(String, &str)> = (0..40)
        .map(|i| match i % 2 {
            0 => (format!("a fine union and peace {i}"), "good"),
            _ => (format!("a law without people {i}"), "bad"),
        })
        .collect();
    let table = dir.join("train.tsv");
    let lines = rows.iter().map(|(text, label)| format!("{text}\t{label}\n"));
    fs::write(&table, "sentence\tlabel\n".to_owned() + &lines.collect::<String>()).unwrap();
    let shards = dir.join("labelled");
    fs::create_dir_all(&shards).unwrap();
    let names: Vec<[String; 2]> =
        (0..40).map(|i| ["txt", "cls"].map(|field| format!("{i:02}.{field}"))).collect();
    let mut files = Vec::new();
    for ([text, class], (printed, label)) in names.iter().zip(&rows) {
        files.push((text.as_str(), printed.clone().into_bytes()));
        files.push((class.as_str(), label.as_bytes().to_vec()));
    }
    files.push(("x.txt", b"no label".to_vec()));
    tar(&shards.join("a.tar"), &files);

    let tune = |data: &Path, name: &str| {
        let out = dir.join(name);
        let mut command = program(&["finetune"]);
        command.arg(repository().join("recipes/finetune-nlp-tiny.toml"));
        command
            .arg("--encoder")
            .arg(run.join("encoder"))
            .arg("--data")
            .arg(data)
            .arg("--out")
            .arg(&out);
        command.args(["--device", "cpu"]).env("XDG_CACHE_HOME", dir);
        for set in [
            "train.steps=6",
            "train.held_out=0.2",
            "train.eval_every=3",
            "train.log_every=3",
            "train.save_every=6",
            "train.max_bad_examples=1",
            "data.max_tokens=32",
            "schedule.warmup_steps=2",
        ] {
            command.args(["--set", set]);
        }
        let printed = succeed(&mut command);
        let mut lines = timeless_metrics(&out);
        lines
            .iter_mut()
            .for_each(|line| drop(line.as_object_mut().unwrap().remove("bad_examples")));
        (lines, printed)
    };
    let ((one, _), (other, printed)) = (tune(&table, "of-table"), tune(&shards, "of-shards"));
    assert_eq!(one, other);
    assert!(printed.contains("x.txt: no label"), "{printed}");
}
