//! Broken and unusual images: the program reads them, or reports the file and the reason.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ndarray::Array2;
use ndarray_npy::read_npy;
use support::*;

/// Returns a directory with 40 images and a short run on them.
fn run() -> &'static tempfile::TempDir {
    static RUN: OnceLock<tempfile::TempDir> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = temp_dir();
        succeed(&mut pretrain_images(&images(dir.path()), &dir.path().join("run"), &[]));
        dir
    })
}

fn encoder() -> PathBuf {
    run().path().join("run/encoder")
}

/// Writes 40 valid images to a directory `images` in `dir`.
fn images(dir: &Path) -> PathBuf {
    let data = dir.join("images");
    fs::create_dir_all(&data).unwrap();
    for i in 0..40 {
        fs::copy(image("small.png"), data.join(format!("{i:02}.png"))).unwrap();
    }
    data
}

/// Returns a PNG with another header, whose checksum is correct.
fn png_with_header(width: u32, height: u32, depth: u8, colour: u8) -> Vec<u8> {
    let mut png = fs::read(image("small.png")).unwrap();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    (png[24], png[25]) = (depth, colour);
    let mut sum = flate2::Crc::new();
    sum.update(&png[12..29]);
    png[29..33].copy_from_slice(&sum.sum().to_be_bytes());
    png
}

/// Returns the first part of a file.
fn truncated(name: &str, share: f64) -> Vec<u8> {
    let bytes = fs::read(image(name)).unwrap();
    bytes[..(bytes.len() as f64 * share) as usize].to_vec()
}

/// Returns broken files: name, content, a part of the expected reason.
fn broken() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    vec![
        ("empty.png", Vec::new(), "is empty (0 bytes)"),
        ("text.jpg", b"once upon a time".to_vec(), "not an image of a supported format"),
        ("drawing.png", b"<svg/>".to_vec(), "not an image of a supported format"),
        ("cut.png", truncated("source.png", 0.5), "broken image"),
        ("cut.jpg", truncated("rgb.jpg", 0.98), "cut off before its end"),
        ("cut-progressive.jpg", truncated("progressive.jpg", 0.8), "cut off before its end"),
        ("cut.gif", truncated("animated.gif", 0.3), "broken image"),
        ("cut.webp", truncated("lossless.webp", 0.7), "broken image"),
        ("cut.bmp", truncated("rgb.bmp", 0.9), "broken image"),
        ("cut.tiff", truncated("lzw.tiff", 0.1), "broken image"),
        (
            "wide.png",
            png_with_header(200_000, 200_000, 8, 2),
            "200000 × 200000 pixels; the limit is 100000000",
        ),
        (
            "deep.png",
            png_with_header(i32::MAX as u32, i32::MAX as u32, 16, 6),
            "needs more than 1073741824 bytes",
        ),
        ("none.png", png_with_header(0, 7, 8, 2), "broken image"),
    ]
}

#[test]
fn reads_unusual_images() {
    let dir = temp_dir();
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
        // A single file is a data set.
        let out = dir.path().join(name);
        succeed(&mut pretrain_images(&image(name), &out, &["train.held_out=0", "train.steps=3"]));
    }
}

/// A broken file is an error of `extract`. In training it is skipped, reported once and counted.
#[test]
fn skips_and_reports_broken_images() {
    let dir = temp_dir();
    let data = images(dir.path());
    for (name, bytes, reason) in broken() {
        let path = data.join(name);
        fs::write(&path, bytes).unwrap();
        let out = dir.path().join("none.npy");
        fail(&mut extract(&encoder(), &[&path], &out), &[path.to_str().unwrap(), reason]);
        assert!(!out.exists(), "{name}");
    }
    let pipe = data.join("pipe.png"); // never written to
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let count = broken().len() + 1;
    let train = |out: &str, allowed: usize| {
        let allowed = format!("train.max_bad_examples={allowed}");
        let set = ["train.held_out=0", "train.steps=20", &allowed];
        pretrain_images(&data, &dir.path().join(out), &set)
    };
    let printed = succeed(&mut train("all", count));
    for (name, _, reason) in
        broken().iter().chain([&("pipe.png", Vec::new(), "is not a regular file")])
    {
        let path = format!("{}: ", data.join(name).display());
        let reports: Vec<&str> = printed.lines().filter(|line| line.contains(&path)).collect();
        assert_eq!(reports.len(), 1, "{name}: {printed}");
        assert!(
            reports[0].starts_with("warning: skipped ") && reports[0].contains(reason),
            "{printed}"
        );
    }
    let lines = metrics(&dir.path().join("all"));
    let last = lines.iter().rfind(|line| line["kind"] == "train").unwrap();
    assert_eq!(last["bad_examples"], count, "{last}");
    let words = ["unusable", &format!("train.max_bad_examples = {}", count - 1)];
    fail(&mut train("few", count - 1), &words);
}

/// A file truncated anywhere is an error.
#[test]
fn rejects_truncated_images() {
    let dir = temp_dir();
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
        let printed = fail(&mut extract(&encoder(), &files, &out), &["40 of 40 files"]);
        assert_eq!(printed.matches("warning: skipped ").count(), 40, "{name}: {printed}");
    }
}

#[test]
fn rejects_directories_without_images() {
    let dir = temp_dir();
    let (dir, out) = (dir.path(), dir.path().join("run"));
    let gone = dir.join("gone");
    fail(&mut pretrain_images(&gone, &out, &[]), &[gone.to_str().unwrap(), "No such file"]);
    let data = dir.join("data");
    fs::create_dir_all(data.join("directory.png")).unwrap();
    fs::write(data.join("notes.txt"), "none here").unwrap();
    let words = [data.to_str().unwrap(), "no image", "png"];
    fail(&mut pretrain_images(&data, &out, &[]), &words);
    fail(
        &mut extract(&encoder(), &[&data.join("directory.png")], &out),
        &["directory.png: is a directory"],
    );
    fs::write(data.join("x.png"), "no image").unwrap();
    let words = ["no usable example", "x.png: is not an image of a supported format"];
    fail(&mut pretrain_images(&data, &out, &["train.held_out=0"]), &words);
    fail(&mut pretrain_images(&data, &out, &[]), &["train.held_out", "of 1 images"]);
}

/// Includes links in a circle, to themselves and to missing files.
#[test]
fn follows_links_and_skips_broken_ones() {
    let dir = temp_dir();
    let data = images(dir.path());
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, data.join(name)).unwrap();
    link(".", "circle");
    link("self.png", "self.png");
    link("/nowhere.png", "dangling.png");
    link("00.png", "another-name.png");
    let printed = succeed(&mut pretrain_images(&data, &dir.path().join("run"), &["train.steps=3"]));
    assert_eq!(printed.matches("warning: skipped ").count(), 2, "{printed}");
    assert!(
        printed.contains("self.png: Too many levels") && printed.contains("dangling.png: No such")
    );
    fail(
        &mut pretrain_images(&data, &dir.path().join("strict"), &["train.max_bad_examples=1"]),
        &["2 unusable", "train.max_bad_examples = 1"],
    );
}

#[test]
fn rejects_inconsistent_idx_files() {
    let dir = temp_dir();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    fs::create_dir(&data).unwrap();
    let idx = |sizes: &[u32], count: usize| {
        let mut bytes = vec![0, 0, 8, sizes.len() as u8];
        sizes.iter().for_each(|n| bytes.extend(n.to_be_bytes()));
        bytes.resize(bytes.len() + count, 7);
        bytes
    };
    let (images, labels) = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte");
    let assert_rejected = |name: &str, bytes: &[u8], words: &[&str]| {
        let path = data.join(name);
        fs::write(&path, bytes).unwrap();
        let printed = fail(&mut pretrain_images(&data, &out, &["train.held_out=0"]), words);
        assert!(printed.contains(path.to_str().unwrap()), "{printed}");
        fs::remove_file(path).unwrap();
    };
    assert_rejected(images, &[], &["ends early"]);
    assert_rejected(images, &idx(&[40, 8, 8], 2559), &["ends early", "[40, 8, 8]"]);
    assert_rejected(images, &idx(&[40, 8, 8], 2561), &["too long", "[40, 8, 8]"]);
    assert_rejected(images, &idx(&[u32::MAX; 3], 9), &["impossible size"]);
    assert_rejected(images, &idx(&[1 << 10, 1 << 10, 1 << 12], 9), &["ends early"]);
    assert_rejected(images, &idx(&[0, 8, 8], 0), &["is empty"]);
    assert_rejected(images, &idx(&[40], 40), &["not an IDX file of bytes in 3 dimensions"]);
    let gz = format!("{images}.gz");
    assert_rejected(&gz, &gzip(&idx(&[40, 8, 8], 2560))[..30], &["ends early"]);
    assert_rejected(&gz, &[0x1f, 0x8b, 1, 2, 3], &["gz"]);
    // 64 MB of zeros in 64 kB, as the header says.
    assert_rejected(&gz, &gzip(&idx(&[1 << 16, 32, 32], 1 << 26)), &["more than 200 times"]);

    fs::write(data.join(images), idx(&[40, 8, 8], 2560)).unwrap();
    assert_rejected(labels, &idx(&[39], 39), &["39 labels for 40 images"]);
    fs::write(data.join(labels), idx(&[40], 40)).unwrap();
    succeed(&mut pretrain_images(&data, &out, &["train.held_out=0", "train.steps=3"]));
}
