//! Recordings as examples for pretraining.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use data2vec_core::data::split::{Amount, empty_side, stratified_split};
use data2vec_core::random::{Purpose, hash, seed_for};
use data2vec_core::{Batch, Dataset, Error, Result};
use rand::{RngExt, rngs::StdRng};
use tch::{Device, Tensor};

use crate::audio::{self, AudioInfo, EXTENSIONS, SAMPLE_RATE};
use crate::config::{Batching, LabelKind, SpeechDataConfig};
use crate::listing::{self, durations::durations, store::Store};
use crate::preprocess::pad;
use crate::transcripts;

/// Tolerated difference between a recording and its manifest in samples (0.2 s): decoders disagree
/// on the padding that codecs add at both ends.
const MANIFEST_TOLERANCE: u64 = 3_200;
/// Fields of shards that hold a transcript.
const TEXT_FIELDS: [&str; 5] = ["txt", "text", "transcript", "transcription", "sentence"];
/// Fields of shards that hold a class.
const CLASS_FIELDS: [&str; 3] = ["cls", "label", "class"];

/// Unlabelled recordings: an example is its samples at 16 kHz, cropped to `max_seconds`, a batch
/// `(B, S)` f32.
///
/// Clones and both sides of a [`split`](Self::split) share one listing.
#[derive(Clone, Debug)]
pub struct SpeechDataset {
    corpus: Arc<Corpus>,
    /// Indices into the recordings of the corpus.
    chosen: Arc<[u32]>,
    config: SpeechDataConfig,
    normalize: bool,
}

#[derive(Debug)]
struct Corpus {
    store: Store,
    recordings: Vec<Recording>,
    from_manifest: bool,
    too_short: usize,
    skipped: Vec<(PathBuf, String)>,
}

#[derive(Debug)]
struct Recording {
    /// Relative to the root of the store.
    path: PathBuf,
    /// Length at 16 kHz.
    samples: u64,
    /// Index in the store.
    at: u32,
}

impl SpeechDataset {
    /// Lists the recordings at `path`.
    ///
    /// `path` is one of: a directory with audio anywhere below it (LibriSpeech and Libri-light
    /// included), a fairseq manifest (`.tsv`: a root, then `path<TAB>samples`), one audio file, or
    /// shards ([`data2vec_source`]).
    ///
    /// Lengths come from the headers of the files, from the manifest, or from a field `json` with
    /// `samples` and `sample_rate`. With `cache`, a directory, they are stored there, and the next
    /// start opens only new and changed files.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if a setting is invalid, and [`Error::Io`], [`Error::File`] or
    /// [`Error::Data`] if `path` cannot be read or contains no usable recording. Unreadable files
    /// are no error, see [`skipped`](Self::skipped).
    pub fn open(
        path: impl AsRef<Path>,
        config: &SpeechDataConfig,
        cache: Option<&Path>,
    ) -> Result<Self> {
        let path = path.as_ref();
        config.validate()?;
        let listing = listing::list(path, cache)?;
        let (store, mut skipped) = (listing.store, listing.skipped);
        let from_manifest = listing.files.iter().any(|(_, samples)| samples.is_some());
        let count = listing.files.len();
        let (files, listed): (Vec<_>, Vec<_>) = listing.files.into_iter().unzip();
        let lengths = match listed.into_iter().collect::<Option<Vec<u64>>>() {
            Some(lengths) => lengths.into_iter().map(Ok).collect(),
            None => durations(&store, &files, cache)?,
        };

        let (mut recordings, mut too_short) = (Vec::with_capacity(count), 0);
        if u32::try_from(count).is_err() {
            return Err(Error::file(path, "contains more than 2^32 recordings; split it"));
        }
        for ((at, path), length) in (0..).zip(files).zip(lengths) {
            match length {
                Ok(samples) if samples >= config.min_samples() => {
                    recordings.push(Recording { path, samples, at });
                }
                Ok(_) => too_short += 1,
                Err(reason) => skipped.push((store.root().join(path), reason)),
            }
        }
        if recordings.is_empty() {
            let least = config.min_seconds;
            let reason = match (skipped.first(), too_short) {
                (None, 0) => format!("no audio in it (looked for {})", EXTENSIONS.join(", ")),
                (None, n) => format!("all {n} recordings are shorter than min_seconds = {least}"),
                (Some((first, reason)), _) => {
                    let (first, bad) = (first.display(), skipped.len());
                    format!(
                        "no usable audio in it: {bad} unreadable ({first}: {reason}), \
                         {too_short} shorter than min_seconds = {least}"
                    )
                }
            };
            return Err(Error::file(path, reason));
        }
        Ok(Self {
            chosen: (0..recordings.len() as u32).collect(),
            corpus: Arc::new(Corpus { store, recordings, from_manifest, too_short, skipped }),
            config: config.clone(),
            normalize: false,
        })
    }

    /// Sets whether each recording is normalized to zero mean and unit variance before it is
    /// cropped; equals `normalize` in the settings of the encoder.
    #[must_use]
    pub fn normalized(self, normalize: bool) -> Self {
        Self { normalize, ..self }
    }

    /// Splits off about `share` of the recordings: returns (train, held out).
    ///
    /// The same paths and `seed` give the same split. It depends on each recording's own path only,
    /// so a growing corpus never moves a recording to the other side.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if one side would be empty.
    pub fn split(&self, share: f64, seed: u64) -> Result<(Self, Self)> {
        if !(0.0..1.0).contains(&share) {
            let reason = format!("must be at least 0 and below 1, not {share}");
            return Err(Error::config("train.held_out", reason));
        }
        let below = (share * 2_f64.powi(64)) as u64;
        let hash = |chosen: u32| seed_for(seed, Purpose::Split, &[self.key(chosen)]);
        let (held_out, train): (Vec<u32>, Vec<u32>) =
            self.chosen.iter().partition(|&&chosen| hash(chosen) < below);
        if held_out.is_empty() || train.is_empty() {
            let what = match self.corpus.too_short {
                0 => "recordings".to_owned(),
                n => format!(
                    "recordings ({n} more are shorter than data.min_seconds = {})",
                    self.config.min_seconds
                ),
            };
            let hashes: Vec<u64> = self.chosen.iter().map(|&chosen| hash(chosen)).collect();
            return Err(empty_side(share, &hashes, &what));
        }
        let side = |chosen: Vec<u32>| Self { chosen: chosen.into(), ..self.clone() };
        Ok((side(train), side(held_out)))
    }

    /// Returns the indices of a subsample in ascending order: a share of all recordings, or a number
    /// of each class.
    pub(crate) fn sample_indices(
        &self,
        amount: Amount,
        classes: impl Fn(usize) -> u64,
        seed: u64,
    ) -> Vec<usize> {
        let key = |index: usize| self.key(self.chosen[index]);
        match amount {
            Amount::Share(share) => {
                let count = (share * self.len() as f64).round().max(1.0) as usize;
                let rank = |index| (seed_for(seed, Purpose::Split, &[key(index)]), index);
                let mut ranked: Vec<(u64, usize)> = (0..self.len()).map(rank).collect();
                ranked.sort_unstable();
                ranked.truncate(count);
                let mut indices: Vec<usize> = ranked.into_iter().map(|(_, index)| index).collect();
                indices.sort_unstable();
                indices
            }
            Amount::Each(_) => {
                let examples: Vec<(u64, u64)> =
                    (0..self.len()).map(|index| (classes(index), key(index))).collect();
                stratified_split(&examples, amount, seed).1
            }
        }
    }

    /// Returns a key of a recording that is the same on every system.
    fn key(&self, chosen: u32) -> u64 {
        let path = &self.corpus.recordings[chosen as usize].path;
        hash(path.to_string_lossy().replace('\\', "/").as_bytes())
    }

    /// Returns the path of a recording.
    pub fn path(&self, index: usize) -> PathBuf {
        self.root().join(self.relative_path(index))
    }

    /// Returns the path of a recording relative to the directory or the root of the manifest.
    pub fn relative_path(&self, index: usize) -> &Path {
        &self.recording(index).path
    }

    /// Returns the full length of a recording in samples at 16 kHz, from its header or the
    /// manifest.
    pub fn samples(&self, index: usize) -> u64 {
        self.recording(index).samples
    }

    /// Returns the total length of all recordings in seconds.
    pub fn seconds(&self) -> f64 {
        let samples: u64 = (0..self.chosen.len()).map(|index| self.samples(index)).sum();
        samples as f64 / f64::from(SAMPLE_RATE)
    }

    /// Returns the number of recordings that were skipped because they are shorter than
    /// `min_seconds`.
    pub fn too_short(&self) -> usize {
        self.corpus.too_short
    }

    /// Returns one line for each unreadable audio file: `path: reason`.
    pub fn skipped(&self) -> Vec<String> {
        let line = |(path, reason): &(PathBuf, _)| format!("{}: {reason}", path.display());
        self.corpus.skipped.iter().map(line).collect()
    }

    /// Reads a full recording, normalized if [`normalized`](Self::normalized) is set.
    ///
    /// # Errors
    /// Returns the errors of [`audio::read`], and [`Error::File`] if the recording is shorter than
    /// `min_seconds` or its length differs from the manifest.
    pub fn read(&self, index: usize) -> Result<Vec<f32>> {
        let mut wave = self.decode(index)?.0;
        if self.normalize {
            audio::normalize(&mut wave);
        }
        Ok(wave)
    }

    /// Decodes a full recording and returns its length, sampling rate and channels.
    ///
    /// # Errors
    /// Returns the errors of [`read`](Self::read).
    pub fn inspect(&self, index: usize) -> Result<AudioInfo> {
        Ok(self.decode(index)?.1)
    }

    fn decode(&self, index: usize) -> Result<(Vec<f32>, AudioInfo)> {
        let (recording, path) = (self.recording(index), self.path(index));
        let (wave, info) = self.corpus.store.decode(recording.at as usize, &recording.path)?;
        let (found, listed) = (info.samples, self.samples(index));
        if self.corpus.from_manifest && found.abs_diff(listed) > MANIFEST_TOLERANCE {
            let reason =
                format!("{found} samples at {SAMPLE_RATE} Hz, but {listed} in the manifest");
            return Err(Error::file(path, reason));
        }
        if found < self.config.min_samples() {
            let seconds = found as f64 / f64::from(SAMPLE_RATE);
            let least = self.config.min_seconds;
            return Err(Error::file(path, format!("{seconds:.2} s, but min_seconds is {least}")));
        }
        Ok((wave, info))
    }

    /// Returns the transcripts of the recordings at `indices`, where there are any. `path` is the
    /// path that was opened.
    ///
    /// # Errors
    /// Returns an error if a transcript file is invalid or does not match the recordings.
    pub fn texts(&self, path: &Path, indices: &[usize]) -> Result<Vec<Option<String>>> {
        self.labels(LabelKind::Text, path, indices)
    }

    /// Returns the classes of the recordings at `indices`: from tables, else the directory names.
    /// `path` is the path that was opened.
    ///
    /// # Errors
    /// Returns the errors of [`texts`](Self::texts).
    pub fn classes(&self, path: &Path, indices: &[usize]) -> Result<Vec<Option<String>>> {
        self.labels(LabelKind::Class, path, indices)
    }

    /// Reads a recording without decoding it.
    ///
    /// # Errors
    /// Returns [`Error::Io`] or [`Error::Data`] if it cannot be read.
    pub fn bytes(&self, index: usize) -> Result<Bytes> {
        let Recording { path, at, .. } = self.recording(index);
        self.corpus.store.bytes(*at as usize, path)
    }

    /// Returns the transcripts or classes of the recordings at `indices`, where there are any.
    pub(crate) fn labels(
        &self,
        kind: LabelKind,
        path: &Path,
        indices: &[usize],
    ) -> Result<Vec<Option<String>>> {
        let paths: Vec<&Path> = indices.iter().map(|&index| self.relative_path(index)).collect();
        let mut labels = match (&self.corpus.store, kind) {
            (Store::Directory(root), LabelKind::Text) => transcripts::texts(path, root, &paths)?,
            (Store::Directory(root), LabelKind::Class) => transcripts::classes(path, root, &paths)?,
            (Store::Shards(_), _) => {
                return indices.iter().map(|&index| self.shard_label(kind, index)).collect();
            }
        };
        Ok(paths.into_iter().map(|path| labels.remove(path)).collect())
    }

    fn shard_label(&self, kind: LabelKind, index: usize) -> Result<Option<String>> {
        let Recording { path, at, .. } = self.recording(index);
        let field = |names| self.corpus.store.field(*at as usize, names);
        match kind {
            LabelKind::Text => field(&TEXT_FIELDS),
            LabelKind::Class => Ok(field(&CLASS_FIELDS)?.or_else(|| transcripts::folder(path))),
        }
    }

    /// Returns the root of relative paths.
    fn root(&self) -> &Path {
        self.corpus.store.root()
    }

    /// Selects the recordings at `indices`, in that order.
    pub(crate) fn select(&self, indices: &[usize]) -> Self {
        let chosen = indices.iter().map(|&index| self.chosen[index]).collect();
        Self { chosen, ..self.clone() }
    }

    fn recording(&self, index: usize) -> &Recording {
        &self.corpus.recordings[self.chosen[index] as usize]
    }
}

impl Dataset for SpeechDataset {
    type Example = Vec<f32>;
    type Batch = Batch;

    fn len(&self) -> usize {
        self.chosen.len()
    }

    fn size(&self, index: usize) -> u64 {
        self.samples(index).min(self.config.max_samples())
    }

    fn name(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    fn prefetch(&self, indices: &[u32]) {
        let at = |&index: &u32| self.recording(index as usize).at as usize;
        self.corpus.store.prefetch(indices.iter().map(at));
    }

    fn load(&self, index: usize, rng: &mut StdRng) -> Result<Vec<f32>> {
        // Never longer than planned, even if the listed length was an estimate.
        let len = self.size(index) as usize;
        Ok(crop(self.read(index)?, len, rng))
    }

    fn collate(&self, examples: Vec<Vec<f32>>, rng: &mut StdRng) -> Result<Batch> {
        let Some(shortest) = examples.iter().map(Vec::len).min() else {
            return Err(Error::Input("the batch has no recordings".into()));
        };
        match self.config.batching {
            Batching::Crop => {
                let rows = examples.len() as i64;
                let mut flat = Vec::with_capacity(examples.len() * shortest);
                for example in examples {
                    flat.extend_from_slice(&crop(example, shortest, rng));
                }
                Batch::new(Tensor::from_slice(&flat).reshape([rows, shortest as i64])) // (B, S)
            }
            Batching::Pad => pad(&examples, Device::Cpu),
        }
    }
}

/// Crops `wave` to `len` samples at a random position; shorter waves are returned as they are.
fn crop(mut wave: Vec<f32>, len: usize, rng: &mut StdRng) -> Vec<f32> {
    if wave.len() > len {
        let start = rng.random_range(0..=wave.len() - len);
        wave.copy_within(start..start + len, 0);
        wave.truncate(len);
    }
    wave
}
