//! Each modality's crate used alone, by the programs of `reuse/`, which are no part of the workspace.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use data2vec_core::{Data2Vec, Data2VecConfig, FeatureEncoder, Mask};
use data2vec_nlp::{TextEncoder, TokenEncoder, Tokenizer, read_text};
use data2vec_speech::{SpeechEncoder, WaveEncoder, audio};
use data2vec_tests::tiny::{self, FixedMask};
use data2vec_tests::{text, vision};
use data2vec_vision::{PatchEncoder, Pixels, VisionEncoder};
use ndarray::{Array2, array};
use tch::Device;
use tempfile::TempDir;
use toml::Table;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository")
}

fn table(path: &Path) -> Table {
    fs::read_to_string(path).expect("text").parse().expect("TOML")
}

/// Cargo in the folder of a program, as if its user had called it.
fn cargo(program: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(program);
    // What cargo set for this test would make build scripts run again.
    for (name, value) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let set_by_cargo =
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|p| text.starts_with(p));
        if set_by_cargo || (text == "LIBTORCH" && Path::new(&value) == root().join(".libtorch")) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// The program of `reuse/NAME`, built with the workspace's versions, profile and target folder: only
/// our own crates are compiled again.
fn build(name: &str) -> PathBuf {
    let program = root().join("tests/reuse").join(name);
    fs::copy(root().join("Cargo.lock"), program.join("Cargo.lock")).expect("space");
    let this = std::env::current_exe().expect("a test"); // TARGET/PROFILE/deps/TEST
    let built = this.ancestors().nth(2).expect("a folder of programs");
    let profile = match built.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut build = cargo(&program);
    build.args(["build", "--offline", "--profile", profile]);
    build.arg("--target-dir").arg(built.parent().expect("the target folder"));
    let mut settings = table(&root().join("Cargo.toml"));
    settings.retain(|name, _| name == "profile");
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("profile.toml");
    fs::write(&config, settings.to_string()).expect("space");
    let output = build.arg("--config").arg(&config).output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_lean(&program, name);
    built.join(format!("reuse-{name}"))
}

/// Neither the program that trains nor its command line is among what is linked, and all of that is of
/// the workspace's versions.
fn assert_lean(program: &Path, name: &str) {
    let mut tree = cargo(program);
    tree.args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    let output = tree.output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("text");
    let linked: BTreeSet<(&str, &str)> = lines
        .lines()
        .filter_map(|line| Some((line.split(' ').next()?, line.split(' ').nth(1)?)))
        .collect();
    let has = |package: &str| linked.iter().any(|(name, _)| *name == package);
    assert!(has(&format!("data2vec-{name}")) && has("data2vec-core") && has("tch"), "{linked:?}");
    assert!(!has("data2vec") && !has("clap"), "{linked:?}");

    let lock = table(&root().join("Cargo.lock"));
    let locked = lock["package"].as_array().expect("packages");
    for (package, version) in linked.iter().filter(|(package, _)| !package.starts_with("reuse-")) {
        let same = |p: &toml::Value| {
            p["name"].as_str() == Some(package)
                && p["version"].as_str() == version.strip_prefix('v')
        };
        assert!(locked.iter().any(same), "{package} {version} is not the workspace's");
    }
}

/// What the program prints of a file: a line of numbers for each vector.
fn printed(name: &str, encoder: &TempDir, file: &Path) -> Vec<Vec<f32>> {
    let output = Command::new(build(name)).arg(encoder.path()).arg(file).output().expect("built");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("text");
    lines.lines().map(|line| serde_json::from_str(line).expect("numbers")).collect()
}

#[track_caller]
fn assert_equal(printed: &[Vec<f32>], features: &Array2<f32>) {
    assert!(features.nrows() > 3);
    assert_eq!(printed.len(), features.nrows());
    for (printed, vector) in printed.iter().zip(features.rows()) {
        assert_eq!(printed.len(), vector.len());
        let off = printed.iter().zip(vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5, "off by {off}");
    }
}

/// A model's encoder in a folder.
fn export<F: FeatureEncoder>(config: Data2VecConfig<F::Config>) -> TempDir {
    let masking = FixedMask(Mask::new(array![[true, false]]).expect("something hidden"));
    let model = Data2Vec::<F>::new(config, Box::new(masking), Device::Cpu, 1);
    let folder = tempfile::tempdir().expect("a folder");
    model.expect("possible settings").export(folder.path()).expect("space");
    folder
}

#[test]
fn speech_alone() {
    let folder = export::<WaveEncoder>(tiny::speech_v2());
    let file = root().join("data/fixtures/sweep.flac");
    let encoder = SpeechEncoder::load(folder.path(), Device::Cpu).expect("an encoder");
    let features = encoder.features(&audio::read(&file).expect("audio")).expect("long enough");
    assert_equal(&printed("speech", &folder, &file), &features);
}

#[test]
fn vision_alone() {
    let folder = export::<PatchEncoder>(vision::v2());
    let file = root().join("crates/vision/tests/fixtures/rgb.jpg");
    let encoder = VisionEncoder::load(folder.path(), Device::Cpu).expect("an encoder");
    let features = encoder.features(&Pixels::read(&file).expect("an image")).expect("colours");
    assert_equal(&printed("vision", &folder, &file), &features);
}

#[test]
fn nlp_alone() {
    let file = root().join("data/fixtures/README.md");
    let words = read_text(&file).expect("text");
    let mut config = text::v2();
    (config.features.vocabulary, config.features.mask) = (270, 269);
    let folder = export::<TokenEncoder>(config);
    let tokenizer = Tokenizer::train([words.as_str(); 9].into_iter(), 270).expect("enough text");
    tokenizer.save(folder.path()).expect("space");
    let encoder = TextEncoder::load(folder.path(), Device::Cpu).expect("an encoder");
    let features = encoder.features(&words).expect("text");
    assert_equal(&printed("nlp", &folder, &file), &features);
}
