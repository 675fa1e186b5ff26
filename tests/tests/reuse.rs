//! Programs outside of the workspace, in `reuse/`, use each modality's crate on its own.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use data2vec_core::{Data2Vec, Data2VecConfig, FeatureEncoder, Mask};
use data2vec_nlp::{TextEncoder, TokenEncoder, Tokenizer, read_text};
use data2vec_speech::{SpeechEncoder, WaveEncoder, audio};
use data2vec_tests::program::{build, cargo, root, table};
use data2vec_tests::tiny::{self, FixedMask};
use data2vec_tests::{text, vision};
use data2vec_vision::{PatchEncoder, Pixels, VisionEncoder};
use ndarray::{Array2, array};
use tch::Device;
use tempfile::TempDir;

/// Asserts that a program depends on neither the training program nor clap, and that its dependencies
/// have the workspace's versions.
fn assert_dependencies(program: &Path, name: &str) {
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

/// Runs a program on a file; returns the vectors that it prints, one per line.
fn printed(name: &str, encoder: &TempDir, file: &Path) -> Vec<Vec<f32>> {
    let program = root().join("tests/reuse").join(name);
    let binary = build(&program, &format!("reuse-{name}"));
    assert_dependencies(&program, name);
    let output = Command::new(binary).arg(encoder.path()).arg(file).output().expect("built");
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
        let diff = printed.iter().zip(vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(diff < 1e-5, "differs by {diff}");
    }
}

/// Exports the encoder of a random model.
fn export<F: FeatureEncoder>(config: Data2VecConfig<F::Config>) -> TempDir {
    let masking = FixedMask(Mask::new(array![[true, false]]).expect("masked tokens"));
    let model = Data2Vec::<F>::new(config, Box::new(masking), Device::Cpu, 1);
    let dir = tempfile::tempdir().expect("a directory");
    model.expect("a valid config").export(dir.path()).expect("written");
    dir
}

#[test]
fn speech_crate_works_alone() {
    let dir = export::<WaveEncoder>(tiny::speech_v2());
    let file = root().join("data/fixtures/sweep.flac");
    let encoder = SpeechEncoder::load(dir.path(), Device::Cpu).expect("an encoder");
    let features = encoder.features(&audio::read(&file).expect("audio")).expect("features");
    assert_equal(&printed("speech", &dir, &file), &features);
}

#[test]
fn vision_crate_works_alone() {
    let dir = export::<PatchEncoder>(vision::v2());
    let file = root().join("crates/vision/tests/fixtures/rgb.jpg");
    let encoder = VisionEncoder::load(dir.path(), Device::Cpu).expect("an encoder");
    let features = encoder.features(&Pixels::read(&file).expect("an image")).expect("an RGB image");
    assert_equal(&printed("vision", &dir, &file), &features);
}

#[test]
fn nlp_crate_works_alone() {
    let file = root().join("data/fixtures/README.md");
    let words = read_text(&file).expect("text");
    let mut config = text::v2();
    (config.features.vocabulary, config.features.mask) = (270, 269);
    let dir = export::<TokenEncoder>(config);
    let tokenizer = Tokenizer::train([words.as_str(); 9].into_iter(), 270).expect("enough text");
    tokenizer.save(dir.path()).expect("written");
    let encoder = TextEncoder::load(dir.path(), Device::Cpu).expect("an encoder");
    let features = encoder.features(&words).expect("text");
    assert_equal(&printed("nlp", &dir, &file), &features);
}
