//! The example of a modality outside of the workspace: it pretrains, resumes, extracts and probes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use data2vec_tests::program::{build, root};
use data2vec_train::doctor::Diagnosis;
use data2vec_train::metrics;

/// Writes a recording of a tone with overtones, as 16-bit WAV at 16 kHz.
fn write_tone(path: &Path, hertz: f64, seconds: f64, phase: f64) {
    let samples: Vec<u8> = (0..(16_000.0 * seconds) as usize)
        .map(|i| std::f64::consts::TAU * hertz * i as f64 / 16_000.0 + phase)
        .map(|t| 0.4 * t.sin() + 0.2 * (2.0 * t).sin() * (t / 40.0).sin())
        .flat_map(|value| ((value * 20_000.0) as i16).to_le_bytes())
        .collect();
    let mut bytes = Vec::new();
    bytes.extend(b"RIFF");
    bytes.extend((36 + samples.len() as u32).to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend(16_u32.to_le_bytes());
    bytes.extend([1_u16, 1].iter().flat_map(|n| n.to_le_bytes())); // PCM, mono
    bytes.extend([16_000_u32, 32_000].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend([2_u16, 16].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend(b"data");
    bytes.extend((samples.len() as u32).to_le_bytes());
    bytes.extend(samples);
    fs::write(path, bytes).expect("written");
}

fn run(program: &Path, args: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        Command::new(program).args(args).output().expect("built");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{stdout}{stderr}");
    format!("{stdout}{stderr}")
}

#[test]
fn example_pretrains_resumes_extracts_and_probes() {
    let program = root().join("examples/spectrogram");
    let lines = fs::read_to_string(program.join("src/modality.rs")).expect("text").lines().count();
    assert!(lines < 150, "the modality has {lines} lines");
    let spectrogram = build(&program, "spectrogram");
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("tones");
    for (class, hertz) in [("low", 200.0), ("high", 1500.0)] {
        fs::create_dir_all(data.join(class)).expect("written");
        for i in 0..20 {
            let (hertz, seconds) = (hertz * (1.0 + 0.01 * f64::from(i)), 1.0 + 0.05 * f64::from(i));
            write_tone(&data.join(class).join(format!("{i}.wav")), hertz, seconds, f64::from(i));
        }
    }
    let (recipe, out) = (dir.path().join("recipe.toml"), dir.path().join("run"));
    let text = fs::read_to_string(program.join("recipe.toml")).expect("the recipe");
    fs::write(
        &recipe,
        text.replace("steps = 60", "steps = 40").replace("batch = 15.0", "batch = 3.0"),
    )
    .expect("written");
    let [recipe, data, out] = [&recipe, &data, &out].map(|path| path.to_str().expect("UTF-8"));

    run(&spectrogram, &["pretrain", recipe, data, out]);
    let run_dir = Path::new(out);
    for file in ["metrics.jsonl", "report.html", "curve.svg", "run.json", "tensorboard"] {
        assert!(run_dir.join(file).exists(), "{file}");
    }
    let before = fs::read_to_string(run_dir.join("metrics.jsonl")).expect("metrics");
    let lines = metrics::parse(&before);
    assert!(Diagnosis::new(&lines, 40).step == 40);

    // Without its last checkpoint, the run resumes from the one before, to the same numbers.
    fs::remove_dir_all(run_dir.join("checkpoints/step-00000040")).expect("the last checkpoint");
    let resumed = run(&spectrogram, &["pretrain", recipe, data, out]);
    assert!(resumed.contains("resuming from step 20"), "{resumed}");
    let losses = |text: &str| -> Vec<(u64, f64)> {
        let of = |line: &metrics::Line| match line {
            metrics::Line::Train(line) => Some((line.step, line.loss)),
            _ => None,
        };
        metrics::parse(text).iter().filter_map(of).collect()
    };
    let after = fs::read_to_string(run_dir.join("metrics.jsonl")).expect("metrics");
    assert_eq!(losses(&before), losses(&after));

    let encoder = run_dir.join("encoder");
    let encoder = encoder.to_str().expect("UTF-8");
    let file = Path::new(data).join("low/0.wav");
    let features = run(&spectrogram, &["extract", encoder, file.to_str().expect("UTF-8")]);
    assert!(features.contains("(50, 256)"), "{features}"); // 1 s, one token every 20 ms
    let probe = run(&spectrogram, &["probe", encoder, data]);
    assert_eq!(probe.matches("kNN").count(), 5, "{probe}");
}
