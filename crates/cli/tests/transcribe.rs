//! `data2vec transcribe`: output formats, several files, standard input, broken files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use data2vec_core::{FinetunedModel, save_model};
use data2vec_speech::WaveEncoder;
use serde_json::Value;
use support::{program, sound, temp_dir, wav};
use tch::{Device, nn};

const ENCODER: &str = r#"
encoder = "wave"
[features]
normalize = true
conv_layers = [[8,10,5],[8,3,2],[8,3,2],[8,3,2],[8,3,2],[8,2,2],[8,2,2]]
conv_norm = "layer"
pos_layers = 1
pos_kernel = 3
pos_groups = 2
alibi = false
[transformer]
dim = 16
depth = 1
heads = 2
mlp_ratio = 2.0
norm = "post"
norm_eps = 1e-5
input_norm = true
input_dropout = 0.0
dropout = 0.0
attention_dropout = 0.0
activation_dropout = 0.0
layer_drop = 0.0
drop_path = 0.0
"#;

const HEAD: &str = r#"
task = "ctc"
pool = "none"
dropout = 0.0
labels = ["<pad>", "|", "A", "B"]
"#;

const ARPA: &str =
    "\\data\\\nngram 1=5\n\n\\1-grams:\n-1 <unk>\n-9 <s>\n-1 </s>\n-1 AB\n-2 A\n\n\\end\\\n";

/// Writes a model that outputs symbols.
fn model(dir: &Path) {
    tch::manual_seed(1);
    let (config, head) = (toml::from_str(ENCODER).unwrap(), toml::from_str(HEAD).unwrap());
    let vars = nn::VarStore::new(Device::Cpu);
    FinetunedModel::<WaveEncoder>::new(&vars.root(), config, head).unwrap();
    let mut tensors = vars.variables();
    let sharpened = &tensors["head.out.weight"] * 8.0;
    tensors.insert("head.out.weight".into(), sharpened);
    let config: data2vec_core::EncoderConfig<data2vec_speech::WaveEncoderConfig> =
        toml::from_str(ENCODER).unwrap();
    save_model(dir, &tensors, &config, Some(&toml::from_str(HEAD).unwrap()), None).unwrap();
}

#[test]
fn transcribes_files_in_all_formats() {
    let dir = temp_dir();
    let (dir, model_dir) = (dir.path(), dir.path().join("model"));
    model(&model_dir);
    let path = |name: &str| dir.join(name).display().to_string();
    for (name, seed) in [("a.wav", 1), ("b.wav", 2)] {
        fs::write(dir.join(name), wav(&sound(3.0, seed))).unwrap();
    }
    fs::write(dir.join("broken.wav"), "not at all").unwrap();
    fs::write(dir.join("words.arpa"), ARPA).unwrap();
    fs::write(dir.join("words.txt"), "AB\nA\nxyz\n").unwrap();
    let run = |args: &[&str]| {
        let model = model_dir.display().to_string();
        let output =
            program(&[&["transcribe", "--device", "cpu", "--model", &model], args].concat())
                .output()
                .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };

    let (ok, alone, stderr) = run(&[&path("a.wav")]);
    assert!(ok && alone.lines().count() == 1 && !alone.trim().is_empty(), "{alone} {stderr}");
    let (ok, json, _) = run(&[&path("a.wav"), "--format", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert!(ok && json["text"] == alone.trim_end());
    let words = json["words"].as_array().unwrap();
    assert!(
        words.iter().all(|word| word["end"].as_f64() <= Some(3.0) && word["score"].is_number())
    );

    // A broken file is skipped, and sets the exit code.
    let (ok, both, stderr) = run(&[&path("a.wav"), &path("broken.wav"), &path("b.wav")]);
    assert!(!ok && stderr.contains("broken.wav: not audio"), "{stderr}");
    assert!(stderr.contains("1 of 3 files could not be used"), "{stderr}");
    let lines: Vec<&str> = both.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], format!("{}\t{}", path("a.wav"), alone.trim_end()));

    let out = path("out");
    let (ok, ..) = run(&[&path("a.wav"), &path("b.wav"), "--format", "vtt", "--out", &out]);
    let vtt = fs::read_to_string(dir.join("out/b.vtt")).unwrap();
    assert!(ok && vtt.starts_with("WEBVTT\n\n00:00:0") && dir.join("out/a.vtt").is_file());
    let (ok, srt, _) = run(&[&path("a.wav"), "--format", "srt"]);
    assert!(ok && srt.starts_with("1\n00:00:0") && srt.contains(" --> 00:00:0"), "{srt}");
    let (ok, _, stderr) = run(&[&path("a.wav"), &path("b.wav"), "--format", "srt"]);
    assert!(!ok && stderr.contains("need --out DIR"), "{stderr}");
    let (ok, _, stderr) = run(&[&path("a.wav"), &path("a.wav"), "--out", &out]);
    assert!(!ok && stderr.contains("two inputs are called a"), "{stderr}");

    let (lm, words) = (path("words.arpa"), path("words.txt"));
    let options = ["--lm", &lm, "--lexicon", &words, "--lm-weight", "1", "--word-score", "-1"];
    let (ok, text, stderr) = run(&[&[path("a.wav").as_str()], &options[..]].concat());
    assert!(
        ok && text.split_whitespace().all(|word| ["AB", "A"].contains(&word)),
        "{text} {stderr}"
    );
    assert!(
        stderr.contains("skipped 1 spellings with symbols that the model lacks; 2 words remain")
    );
    let (ok, _, stderr) = run(&[&path("a.wav"), "--lm", &path("a.wav")]);
    assert!(!ok && stderr.lines().count() == 1 && stderr.contains("a.wav: line 1"), "{stderr}");
}

#[test]
fn transcribes_standard_input() {
    let dir = temp_dir();
    let model_dir = dir.path().join("model");
    model(&model_dir);
    let args = ["transcribe", "--device", "cpu", "--model", &model_dir.display().to_string(), "-"];
    let transcribe = |bytes: &[u8]| {
        let mut child = program(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = transcribe(&wav(&sound(2.0, 3)));
    assert!(output.status.success() && output.stdout.len() > 1);
    let output = transcribe(b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && stderr.contains("standard input: "), "{stderr}");
}
