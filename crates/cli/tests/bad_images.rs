//! Broken and unusual images, through the program: each is read, or named with its reason.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ndarray::Array2;
use ndarray_npy::read_npy;
use support::*;

/// A folder of 40 images, and a run of a few steps on them.
fn run() -> &'static tempfile::TempDir {
    static RUN: OnceLock<tempfile::TempDir> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = folder();
        succeed(&mut pretrain_images(&images(dir.path()), &dir.path().join("run"), &[]));
        dir
    })
}

fn encoder() -> PathBuf {
    run().path().join("run/encoder")
}

/// A folder `images` in `dir` with 40 that can be read.
fn images(dir: &Path) -> PathBuf {
    let data = dir.join("images");
    fs::create_dir_all(&data).unwrap();
    for i in 0..40 {
        fs::copy(image("small.png"), data.join(format!("{i:02}.png"))).unwrap();
    }
    data
}

/// A PNG whose header claims something else; its checksum is right.
fn claiming_png(width: u32, height: u32, depth: u8, colour: u8) -> Vec<u8> {
    let mut png = fs::read(image("small.png")).unwrap();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    (png[24], png[25]) = (depth, colour);
    let mut sum = flate2::Crc::new();
    sum.update(&png[12..29]);
    png[29..33].copy_from_slice(&sum.sum().to_be_bytes());
    png
}

fn cut(name: &str, share: f64) -> Vec<u8> {
    let bytes = fs::read(image(name)).unwrap();
    bytes[..(bytes.len() as f64 * share) as usize].to_vec()
}

/// Name, content and a word of the reason.
fn broken() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    vec![
        ("empty.png", Vec::new(), "is empty (0 bytes)"),
        ("text.jpg", b"once upon a time".to_vec(), "no image of a known kind"),
        ("drawing.png", b"<svg/>".to_vec(), "no image of a known kind"),
        ("cut.png", cut("source.png", 0.5), "broken image"),
        ("cut.jpg", cut("rgb.jpg", 0.98), "cut off before its end"),
        ("cut-progressive.jpg", cut("progressive.jpg", 0.8), "cut off before its end"),
        ("cut.gif", cut("animated.gif", 0.3), "broken image"),
        ("cut.webp", cut("lossless.webp", 0.7), "broken image"),
        ("cut.bmp", cut("rgb.bmp", 0.9), "broken image"),
        ("cut.tiff", cut("lzw.tiff", 0.1), "broken image"),
        (
            "wide.png",
            claiming_png(200_000, 200_000, 8, 2),
            "200000 × 200000 pixels; up to 100000000",
        ),
        (
            "deep.png",
            claiming_png(i32::MAX as u32, i32::MAX as u32, 16, 6),
            "takes more than 1073741824 bytes",
        ),
        ("none.png", claiming_png(0, 7, 8, 2), "broken image"),
    ]
}

#[test]
fn unusual_images_are_images() {
    let dir = folder();
    for name in [
        "alpha.png",
        "animated.gif",
        "cmyk.jpg",
        "grey.jpg",
        "grey16.png",
        "lossless.webp",
        "lzw.tiff",
        "one.png",
        "palette.png",
        "progressive.jpg",
        "rgb.bmp",
    ] {
        let out = dir.path().join("features.npy");
        succeed(&mut extract(&encoder(), &[&image(name)], &out));
        let features: Array2<f32> = read_npy(out).unwrap();
        assert!(features.iter().all(|x| x.is_finite()), "{name}");
        assert_eq!(features.dim(), (4, 16), "{name}");
        // Each alone is a data set.
        let out = dir.path().join(name);
        succeed(&mut pretrain_images(&image(name), &out, &["train.held_out=0", "train.steps=3"]));
    }
}

/// Each alone is an error of `extract`; among others it is skipped, named once, and counted.
#[test]
fn broken_images_are_named_with_the_reason() {
    let dir = folder();
    let data = images(dir.path());
    for (name, bytes, reason) in broken() {
        let path = data.join(name);
        fs::write(&path, bytes).unwrap();
        let out = dir.path().join("none.npy");
        fail(&mut extract(&encoder(), &[&path], &out), &[path.to_str().unwrap(), reason]);
        assert!(!out.exists(), "{name}");
    }
    let pipe = data.join("pipe.png"); // nobody ever writes to it
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let count = broken().len() + 1;
    let train = |out: &str, allowed: usize| {
        let allowed = format!("train.max_bad_examples={allowed}");
        let set = ["train.held_out=0", "train.steps=20", &allowed];
        pretrain_images(&data, &dir.path().join(out), &set)
    };
    let said = succeed(&mut train("all", count));
    for (name, _, reason) in broken().iter().chain([&("pipe.png", Vec::new(), "is no file")]) {
        let path = format!("{}: ", data.join(name).display());
        let of_it: Vec<&str> = said.lines().filter(|line| line.contains(&path)).collect();
        assert_eq!(of_it.len(), 1, "{name}: {said}");
        assert!(of_it[0].starts_with("note: skipped ") && of_it[0].contains(reason), "{said}");
    }
    let lines = metrics(&dir.path().join("all"));
    let last = lines.iter().rfind(|line| line["kind"] == "train").unwrap();
    assert_eq!(last["bad_examples"], count, "{last}");
    let words = ["unusable", &format!("train.max_bad_examples = {}", count - 1)];
    fail(&mut train("few", count - 1), &words);
}

/// Wherever a file ends: an image or an error, and whole pixels that are not there are an error.
#[test]
fn cut_at_many_places() {
    let dir = folder();
    for name in ["small.png", "rgb.jpg", "progressive.jpg", "cmyk.jpg", "lossless.webp"] {
        let bytes = fs::read(image(name)).unwrap();
        let mut paths = Vec::new();
        for i in 0..40 {
            let path = dir.path().join(format!("{i}-{name}"));
            fs::write(&path, &bytes[..bytes.len() * i / 40]).unwrap();
            paths.push(path);
        }
        let files: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let out = dir.path().join("none.safetensors");
        let said = fail(&mut extract(&encoder(), &files, &out), &["40 of 40 files"]);
        assert_eq!(said.matches("note: skipped ").count(), 40, "{name}: {said}");
    }
}

#[test]
fn folders_without_images() {
    let dir = folder();
    let (dir, out) = (dir.path(), dir.path().join("run"));
    let gone = dir.join("gone");
    fail(&mut pretrain_images(&gone, &out, &[]), &[gone.to_str().unwrap(), "No such file"]);
    let data = dir.join("data");
    fs::create_dir_all(data.join("folder.png")).unwrap();
    fs::write(data.join("notes.txt"), "none here").unwrap();
    let words = [data.to_str().unwrap(), "no image in it", "png"];
    fail(&mut pretrain_images(&data, &out, &[]), &words);
    fail(&mut extract(&encoder(), &[&data.join("folder.png")], &out), &["folder.png: is a folder"]);
    fs::write(data.join("x.png"), "no image").unwrap();
    let words = ["no usable example", "x.png: is no image of a known kind"];
    fail(&mut pretrain_images(&data, &out, &["train.held_out=0"]), &words);
    fail(&mut pretrain_images(&data, &out, &[]), &["train.held_out", "of 1 images"]);
}

/// Links in a circle, to themselves and to nowhere.
#[test]
fn links() {
    let dir = folder();
    let data = images(dir.path());
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, data.join(name)).unwrap();
    link(".", "circle");
    link("self.png", "self.png");
    link("/nowhere.png", "dangling.png");
    link("00.png", "another-name.png");
    let said = succeed(&mut pretrain_images(&data, &dir.path().join("run"), &["train.steps=3"]));
    assert_eq!(said.matches("note: skipped ").count(), 2, "{said}");
    assert!(said.contains("self.png: Too many levels") && said.contains("dangling.png: No such"));
    fail(
        &mut pretrain_images(&data, &dir.path().join("strict"), &["train.max_bad_examples=1"]),
        &["2 unusable", "train.max_bad_examples = 1"],
    );
}

#[test]
fn idx_files_that_lie() {
    let dir = folder();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    fs::create_dir(&data).unwrap();
    let idx = |sizes: &[u32], count: usize| {
        let mut bytes = vec![0, 0, 8, sizes.len() as u8];
        sizes.iter().for_each(|n| bytes.extend(n.to_be_bytes()));
        bytes.resize(bytes.len() + count, 7);
        bytes
    };
    let (images, labels) = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte");
    let refused = |name: &str, bytes: &[u8], words: &[&str]| {
        let path = data.join(name);
        fs::write(&path, bytes).unwrap();
        let said = fail(&mut pretrain_images(&data, &out, &["train.held_out=0"]), words);
        assert!(said.contains(path.to_str().unwrap()), "{said}");
        fs::remove_file(path).unwrap();
    };
    refused(images, &[], &["ends early"]);
    refused(images, &idx(&[40, 8, 8], 2559), &["ends early", "[40, 8, 8]"]);
    refused(images, &idx(&[40, 8, 8], 2561), &["too long", "[40, 8, 8]"]);
    refused(images, &idx(&[u32::MAX; 3], 9), &["impossible size"]);
    refused(images, &idx(&[1 << 10, 1 << 10, 1 << 12], 9), &["ends early"]);
    refused(images, &idx(&[0, 8, 8], 0), &["is empty"]);
    refused(images, &idx(&[40], 40), &["no IDX file of bytes in 3 dimensions"]);
    let gz = format!("{images}.gz");
    refused(&gz, &gzip(&idx(&[40, 8, 8], 2560))[..30], &["ends early"]);
    refused(&gz, &[0x1f, 0x8b, 1, 2, 3], &["gz"]);
    // 64 MB of zeros in 64 kB, as its header says.
    refused(&gz, &gzip(&idx(&[1 << 16, 32, 32], 1 << 26)), &["more than 200 times"]);

    fs::write(data.join(images), idx(&[40, 8, 8], 2560)).unwrap();
    refused(labels, &idx(&[39], 39), &["39 labels for 40 images"]);
    fs::write(data.join(labels), idx(&[40], 40)).unwrap();
    succeed(&mut pretrain_images(&data, &out, &["train.held_out=0", "train.steps=3"]));
}
