//! Unlabelled recordings: listing, lengths, splits, crops and batches.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use data2vec_core::{Dataset, Error, Loader, LoaderConfig};
use data2vec_speech::{Batching, SpeechDataConfig, SpeechDataset};
use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;

mod support;
use support::{fixture, noise, wav};

fn config(batching: Batching) -> SpeechDataConfig {
    SpeechDataConfig { min_seconds: 0.1, max_seconds: 1.0, batching }
}

fn put(folder: &Path, name: &str, samples: usize) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, wav(16_000, 1, &noise(samples as u32, samples))).unwrap();
}

fn corpus(files: &[(&str, usize)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, samples) in files {
        put(folder.path(), name, *samples);
    }
    folder
}

fn open(path: &Path) -> data2vec_core::Result<SpeechDataset> {
    SpeechDataset::open(path, &config(Batching::Crop), None)
}

fn names(data: &SpeechDataset) -> Vec<String> {
    (0..data.len()).map(|index| data.relative_path(index).display().to_string()).collect()
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

#[test]
fn lists_directory_in_order_and_ignores_other_files() {
    let folder = corpus(&[("19/198/19-198-0001.wav", 20_000), ("19/198/19-198-0000.WAV", 9_000)]);
    put(folder.path(), "10/1.wav", 1_599); // just under 0.1 s
    put(folder.path(), "10/2.wav", 1_600);
    put(folder.path(), ".hidden/3.wav", 9_000);
    fs::write(folder.path().join("19/198/._19-198-0001.wav"), "Mac OS X").unwrap();
    fs::write(folder.path().join("19/198/19-198.trans.txt"), "19-198-0000 SO IT BEGINS").unwrap();
    fs::copy(fixture("sweep.flac"), folder.path().join("a.flac")).unwrap();
    fs::write(folder.path().join("broken.flac"), "not at all").unwrap();

    let data = open(folder.path()).unwrap();
    let expected = ["10/2.wav", "19/198/19-198-0000.WAV", "19/198/19-198-0001.wav", "a.flac"];
    assert_eq!(names(&data), expected);
    assert_eq!((0..4).map(|at| data.size(at)).collect::<Vec<_>>(), [1_600, 9_000, 16_000, 8_000]);
    assert_eq!((data.samples(2), data.too_short()), (20_000, 1));
    assert_eq!(data.seconds(), (1_600 + 9_000 + 20_000 + 8_000) as f64 / 16_000.0);
    let skipped = data.skipped();
    let broken = format!("{}: not audio", folder.path().join("broken.flac").display());
    assert!(skipped.len() == 1 && skipped[0].starts_with(&broken), "{skipped:?}");
    assert!(data.name(3).ends_with("a.flac"));
}

#[cfg(unix)]
#[test]
fn follows_links_and_ends_loops() {
    let folder = corpus(&[("a/1.wav", 5_000)]);
    let other = corpus(&[("2.wav", 5_000)]);
    let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, folder.path().join(name));
    link(folder.path(), "a/loop").unwrap();
    link(other.path(), "b").unwrap();
    link(Path::new("/nowhere/3.wav"), "3.wav").unwrap();
    link(Path::new("/nowhere/notes.txt"), "notes.txt").unwrap();
    let data = open(folder.path()).unwrap();
    assert_eq!(names(&data), ["a/1.wav", "b/2.wav"]);
    assert_eq!(data.skipped().len(), 1);
}

#[test]
fn rejects_directories_without_usable_audio() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| open(path).unwrap_err().to_string();
    assert!(message(folder.path()).contains("no audio in it (looked for wav, flac, mp3"));
    put(folder.path(), "1.wav", 100);
    assert!(message(folder.path()).contains("all 1 recordings are shorter than min_seconds = 0.1"));
    fs::write(folder.path().join("2.ogg"), "").unwrap();
    assert!(message(folder.path()).contains("1 unreadable"), "{}", message(folder.path()));
    assert!(message(&folder.path().join("none")).contains("none: No such file"));
}

#[test]
fn trusts_manifest_lengths_until_decoding() {
    let folder = corpus(&[("sub/a.wav", 30_000), ("b.wav", 8_000)]);
    let root = folder.path().display().to_string();
    let lists = tempfile::tempdir().unwrap();
    let path = lists.path().join("train.tsv");
    let absolute = folder.path().join("b.wav").display().to_string();
    fs::write(&path, format!("{root}\r\nsub/a.wav\t30000\r\n{absolute}\t8000\r\n")).unwrap();
    let data = open(&path).unwrap();
    assert_eq!((data.len(), data.samples(0), data.size(0)), (2, 30_000, 16_000));
    assert_eq!(data.read(0).unwrap().len(), 30_000);
    assert_eq!(data.read(1).unwrap().len(), 8_000);

    fs::write(&path, format!("{root}\nsub/a.wav\t60000\n")).unwrap();
    let refused = open(&path).unwrap().read(0).unwrap_err().to_string();
    assert!(refused.contains("30000 samples at 16000 Hz, but 60000 in the manifest"), "{refused}");

    for (text, words) in [
        (String::new(), "line 1"),
        (format!("a.wav\t1\n{root}\n"), "line 1"),
        (format!("{root}\nb.wav\t8000\nb.wav 8000\n"), "line 3: must be `path<TAB>samples`"),
        (format!("{root}\nb.wav\t-8\n"), "line 2"),
        (format!("{root}\nb.wav\t0\n"), "line 2"),
        (format!("{root}\n\t12\n"), "line 2"),
        (format!("{root}\nb.wav\t8\t9\n"), "line 2"),
    ] {
        fs::write(&path, &text).unwrap();
        let refused = open(&path).unwrap_err().to_string();
        assert!(refused.contains(words), "{text:?}: {refused}");
    }
    // A relative root is relative to the manifest.
    let path = folder.path().join("here.tsv");
    fs::write(&path, "sub\na.wav\t30000\n").unwrap();
    assert_eq!(open(&path).unwrap().read(0).unwrap().len(), 30_000);
}

#[test]
fn lists_single_file() {
    let data = open(&fixture("sweep.ogg")).unwrap();
    assert_eq!((data.len(), data.size(0), names(&data)), (1, 8_000, vec!["sweep.ogg".into()]));
}

#[test]
fn index_is_used_until_files_change() {
    let folder = corpus(&[("a.wav", 5_000), ("b.wav", 6_000)]);
    let cache = tempfile::tempdir().unwrap();
    let indexed = || {
        let config = config(Batching::Crop);
        let data = SpeechDataset::open(folder.path(), &config, Some(&cache.path().join("new")));
        data.map(|data| (0..data.len()).map(|at| data.samples(at)).collect::<Vec<_>>())
    };
    assert_eq!(indexed().unwrap(), [5_000, 6_000]);
    let index = fs::read_dir(cache.path().join("new")).unwrap().next().unwrap().unwrap().path();
    let edited = fs::read_to_string(&index).unwrap().replace("\t6000", "\t6001");
    fs::write(&index, edited).unwrap();
    assert_eq!(indexed().unwrap(), [5_000, 6_001], "the index was not used");
    put(folder.path(), "b.wav", 7_000);
    put(folder.path(), "c.wav", 3_000);
    assert_eq!(indexed().unwrap(), [5_000, 7_000, 3_000]);
    for invalid in ["", "something else\n", "data2vec speech index 1\na.wav\tx\ty\n"] {
        fs::write(&index, invalid).unwrap();
        assert_eq!(indexed().unwrap(), [5_000, 7_000, 3_000]);
    }
    fs::remove_file(folder.path().join("a.wav")).unwrap();
    assert_eq!(indexed().unwrap(), [7_000, 3_000]);
    let refused = SpeechDataset::open(folder.path(), &config(Batching::Crop), Some(&index));
    assert!(refused.is_err(), "an index inside a file");
}

#[test]
fn split_is_stable_and_complete() {
    let files: Vec<(String, usize)> = (0..40).map(|at| (format!("{at}.wav"), 2_000)).collect();
    let files: Vec<(&str, usize)> = files.iter().map(|(name, len)| (&name[..], *len)).collect();
    let folder = corpus(&files);
    let data = open(folder.path()).unwrap();
    let (train, held_out) = data.split(0.25, 3).unwrap();
    let (before, mut all) = (names(&held_out), names(&train));
    assert!((4..=16).contains(&before.len()), "{before:?}");
    all.extend(before.clone());
    all.sort();
    let mut expected = names(&data);
    expected.sort();
    assert_eq!(all, expected);
    assert_ne!(before, names(&data.split(0.25, 4).unwrap().1));

    // New files do not move others to the other side.
    for at in 40..80 {
        put(folder.path(), &format!("{at}.wav"), 2_000);
    }
    let grown = open(folder.path()).unwrap().split(0.25, 3).unwrap().1;
    let stayed: Vec<String> = names(&grown).into_iter().filter(|name| all.contains(name)).collect();
    assert_eq!(stayed, before);

    for share in [0.0, 1.0, -0.5, 1e-9, f64::NAN] {
        assert!(matches!(data.split(share, 3), Err(Error::Config { .. })), "{share}");
    }
}

#[test]
fn normalizes_recordings_before_cropping() {
    let folder = tempfile::tempdir().unwrap();
    // Loud, then soft: a crop has another variance than the recording.
    let mut samples = noise(1, 40_000);
    samples[20_000..].iter_mut().for_each(|sample| *sample /= 16);
    fs::write(folder.path().join("a.wav"), wav(16_000, 1, &samples)).unwrap();
    let config = config(Batching::Crop);
    let data = SpeechDataset::open(folder.path(), &config, None).unwrap().normalized(true);
    let whole = data.read(0).unwrap();
    let mut rng = rng();
    let mut starts = Vec::new();
    for _ in 0..8 {
        let piece = data.load(0, &mut rng).unwrap();
        assert_eq!(piece.len(), 16_000);
        starts.push(whole.windows(16_000).position(|window| window == piece).unwrap());
    }
    starts.sort();
    starts.dedup();
    assert!(starts.len() > 5, "{starts:?}");
    assert_eq!(data.load(0, &mut self::rng()).unwrap(), data.load(0, &mut self::rng()).unwrap());
}

#[test]
fn crops_batches_to_shortest_or_pads_to_longest() {
    let data =
        |batching| SpeechDataset::open(fixture("sweep.ogg"), &config(batching), None).unwrap();
    let examples = || vec![vec![1.0_f32; 3], vec![2.0, 3.0, 4.0, 5.0, 6.0], vec![7.0; 4]];
    let mut firsts = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let batch = data(Batching::Crop).collate(examples(), &mut rng).unwrap();
        assert_eq!((batch.inputs.size(), batch.lengths()), (vec![3, 3], None));
        let flat: Vec<f32> = Vec::try_from(batch.inputs.flatten(0, 1)).unwrap();
        assert_eq!((flat[4] - flat[3], flat[5] - flat[3]), (1.0, 2.0), "the crop is contiguous");
        firsts.insert(flat[3] as i32);
    }
    assert_eq!(firsts.into_iter().collect::<Vec<_>>(), [2, 3, 4]);
    let batch = data(Batching::Pad).collate(examples(), &mut rng()).unwrap();
    assert_eq!(batch.lengths(), Some(&[3_i64, 5, 4][..]));
    let flat: Vec<f32> = Vec::try_from(batch.inputs.flatten(0, 1)).unwrap();
    assert_eq!(flat, [1., 1., 1., 0., 0., 2., 3., 4., 5., 6., 7., 7., 7., 7., 0.]);
    assert!(data(Batching::Pad).collate(Vec::new(), &mut rng()).is_err());
}

#[test]
fn rejects_invalid_settings() {
    let key = |min_seconds, max_seconds| {
        let config = SpeechDataConfig { min_seconds, max_seconds, ..config(Batching::Pad) };
        match config.validate() {
            Err(Error::Config { key, .. }) => key,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(key(0.0, 1.0), "data.min_seconds");
    assert_eq!(key(f64::NAN, 1.0), "data.min_seconds");
    assert_eq!(key(2.0, 1.0), "data.max_seconds");
    assert_eq!(key(2.0, f64::INFINITY), "data.max_seconds");
}

#[test]
fn loader_skips_damaged_recordings_up_to_limit() {
    let folder = corpus(&[("a.wav", 16_000), ("b.wav", 16_000), ("c.wav", 16_000)]);
    let cut = fs::read(folder.path().join("b.wav")).unwrap();
    fs::write(folder.path().join("b.wav"), &cut[..20_000]).unwrap();
    let data = Arc::new(open(folder.path()).unwrap());
    let loader = |max_bad| {
        let config = LoaderConfig {
            budget: 48_000,
            max_examples: None,
            workers: 2,
            queue: 2,
            seed: 1,
            max_bad,
            tolerance: 0.05,
        };
        Loader::new(Arc::clone(&data), config, 0).unwrap()
    };
    let mut patient = loader(1);
    for number in 0..4 {
        let loaded = patient.next().unwrap();
        assert_eq!((loaded.number, loaded.epoch, loaded.examples), (number, number, 2));
        assert_eq!(loaded.batch.inputs.size(), [2, 16_000]);
    }
    let bad = patient.bad();
    assert_eq!(bad.len(), 1);
    assert!(bad[0].0.ends_with("b.wav") && bad[0].1.contains("truncated after"), "{bad:?}");
    assert!(patient.waited() > Duration::ZERO);
    assert!(matches!(loader(0).next(), Err(Error::TooManyBad { count: 1, limit: 0, .. })));
}
