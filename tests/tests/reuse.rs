//! Each modality's crate used alone, by the programs of `reuse/`, which are no part of the workspace.

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
    let program = root().join("tests/reuse").join(name);
    let binary = build(&program, &format!("reuse-{name}"));
    assert_lean(&program, name);
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
        let off = printed.iter().zip(vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5, "off by {off}");
    }
}

/// A model's encoder in a folder.
fn export<F: FeatureEncoder>(config: Data2VecConfig<F::Config>) -> TempDir {
    let masking = FixedMask(Mask::new(array![[true, false]]).expect("something hidden"));
    let model = Data2Vec::<F>::new(config, Box::new(masking), Device::Cpu, 1);
    let folder = tempfile::tempdir().expect("a directory");
    model.expect("a valid config").export(folder.path()).expect("written");
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
    tokenizer.save(folder.path()).expect("written");
    let encoder = TextEncoder::load(folder.path(), Device::Cpu).expect("an encoder");
    let features = encoder.features(&words).expect("text");
    assert_equal(&printed("nlp", &folder, &file), &features);
}
