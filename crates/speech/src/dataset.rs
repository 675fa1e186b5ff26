//! Recordings as examples for pretraining.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use data2vec_core::{
    Batch, Dataset, Error, Result,
    random::{Purpose, hash, seed_for},
};
use rand::{RngExt, rngs::StdRng};
use tch::Tensor;

use crate::{
    Batching, HeldOut, LabelKind, SpeechDataConfig,
    audio::{self, AudioInfo, EXTENSIONS, SAMPLE_RATE},
    corpus, index,
    store::Store,
    transcripts,
};

/// By how many samples a file may differ from its manifest: decoders do not agree on what the
/// codecs add at both ends. 0.2 s.
const MANIFEST_SLACK: u64 = 3_200;

/// Recordings on disk: `load` gives one as samples at 16 kHz, cut to `max_seconds`; a batch is
/// `(B, S)` f32.
///
/// A clone, and both sides of a [`split`](Self::split), share what was listed.
#[derive(Clone, Debug)]
pub struct SpeechDataset {
    corpus: Arc<Corpus>,
    /// Which recordings of the corpus.
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
    /// Relative.
    path: PathBuf,
    /// At 16 kHz.
    samples: u64,
    /// Its number in the store.
    at: u32,
}

impl SpeechDataset {
    /// Lists the recordings at `path`: a folder with audio anywhere below it (LibriSpeech's and
    /// Libri-light's among them), a fairseq manifest (`.tsv`: a root, then `path<TAB>samples`),
    /// one audio file, or shards ([`data2vec_source`]).
    ///
    /// Lengths come from the files' headers, or from the manifest, or from a field `json` with `samples` and
    /// `sample_rate`. With `index_folder` they are remembered there, and the next start opens only new and
    /// changed files.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is impossible, [`Error::Io`] or [`Error::File`] if
    /// `path` cannot be read or holds no usable recording. Files that cannot be read are no error
    /// here: see [`skipped`](Self::skipped).
    pub fn open(
        path: impl AsRef<Path>,
        config: &SpeechDataConfig,
        index_folder: Option<&Path>,
    ) -> Result<Self> {
        let path = path.as_ref();
        config.validate()?;
        let listing = corpus::list(path, index_folder)?;
        let (store, mut skipped) = (listing.store, listing.skipped);
        let from_manifest = listing.files.iter().any(|(_, samples)| samples.is_some());
        let found = listing.files.len();
        let (files, told): (Vec<_>, Vec<_>) = listing.files.into_iter().unzip();
        let lengths = match told.into_iter().collect::<Option<Vec<u64>>>() {
            Some(told) => told.into_iter().map(Ok).collect(),
            None => index::durations(&store, &files, index_folder)?,
        };

        let (mut recordings, mut too_short) = (Vec::with_capacity(found), 0);
        if u32::try_from(found).is_err() {
            return Err(Error::file(path, "has more than 2^32 recordings: split it"));
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
            let reason = match (skipped.first(), too_short) {
                (None, 0) => format!("no audio in it (looked for {})", EXTENSIONS.join(", ")),
                (None, n) => {
                    format!(
                        "all {n} recordings are shorter than min_seconds = {}",
                        config.min_seconds
                    )
                }
                (Some((first, reason)), _) => {
                    let (first, bad) = (first.display(), skipped.len());
                    format!(
                        "no usable audio in it: {bad} unreadable ({first}: {reason}), {too_short} \
                         shorter than min_seconds = {}",
                        config.min_seconds
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

    /// The same recordings with zero mean and unit variance each, over the whole of it before it is
    /// cut: what an encoder whose settings say `normalize` was trained on.
    #[must_use]
    pub fn normalized(self, normalize: bool) -> Self {
        Self { normalize, ..self }
    }

    /// The rest, and what is held out for validation: the same for the same paths and seed.
    ///
    /// # Errors
    /// [`Error::Config`] if one side would be empty.
    pub fn split(&self, held_out: HeldOut, seed: u64) -> Result<(Self, Self)> {
        let rank = |&chosen: &u32| {
            let path = &self.corpus.recordings[chosen as usize].path;
            // The same corpus splits the same on every system.
            let path = path.to_string_lossy().replace('\\', "/");
            seed_for(seed, Purpose::Split, &[hash(path.as_bytes())])
        };
        let mut ranked: Vec<(u64, u32)> =
            self.chosen.iter().map(|chosen| (rank(chosen), *chosen)).collect();
        ranked.sort_unstable();
        let count = match held_out {
            HeldOut::Count(count) => count,
            HeldOut::Share(share) if (0.0..1.0).contains(&share) => {
                let below = (share * 2_f64.powi(64)) as u64;
                ranked.partition_point(|&(rank, _)| rank < below)
            }
            HeldOut::Share(share) => {
                let reason = format!("must be at least 0 and below 1, not {share}");
                return Err(Error::config("train.held_out", reason));
            }
        };
        if count == 0 || count >= ranked.len() {
            let share = match held_out {
                HeldOut::Share(share) => format!("a share of {share} "),
                HeldOut::Count(_) => String::new(),
            };
            let reason = format!(
                "{share}holds out {count} of {} recordings; both sides need one at least (or, \
                 without evaluations, 0)",
                ranked.len()
            );
            return Err(Error::config("train.held_out", reason));
        }
        let side = |ranked: &[(u64, u32)]| {
            let mut chosen: Vec<u32> = ranked.iter().map(|&(_, chosen)| chosen).collect();
            chosen.sort_unstable();
            Self { chosen: chosen.into(), ..self.clone() }
        };
        Ok((side(&ranked[count..]), side(&ranked[..count])))
    }

    /// Where a recording is.
    pub fn path(&self, index: usize) -> PathBuf {
        self.root().join(self.relative_path(index))
    }

    /// Where a recording is, from the folder or the manifest's root on.
    pub fn relative_path(&self, index: usize) -> &Path {
        &self.recording(index).path
    }

    /// A recording's whole length in samples at 16 kHz, as its header or the manifest tells it.
    pub fn samples(&self, index: usize) -> u64 {
        self.recording(index).samples
    }

    /// Length of all recordings together, in seconds.
    pub fn seconds(&self) -> f64 {
        let samples: u64 = (0..self.chosen.len()).map(|index| self.samples(index)).sum();
        samples as f64 / f64::from(SAMPLE_RATE)
    }

    /// How many recordings of the corpus were left out for being shorter than `min_seconds`.
    pub fn too_short(&self) -> usize {
        self.corpus.too_short
    }

    /// Files of the corpus that look like audio and could not be read, and why.
    pub fn skipped(&self) -> &[(PathBuf, String)] {
        &self.corpus.skipped
    }

    /// One recording from beginning to end, normalised if the configuration says so.
    ///
    /// # Errors
    /// As [`audio::read`], or if it is shorter than `min_seconds` or not as long as the manifest says.
    pub fn read(&self, index: usize) -> Result<Vec<f32>> {
        let mut wave = self.decode(index)?.0;
        if self.normalize {
            audio::normalize(&mut wave);
        }
        Ok(wave)
    }

    /// Decodes a whole recording, to tell what it is: length, and its own rate and channels.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn inspect(&self, index: usize) -> Result<AudioInfo> {
        Ok(self.decode(index)?.1)
    }

    fn decode(&self, index: usize) -> Result<(Vec<f32>, AudioInfo)> {
        let (recording, path) = (self.recording(index), self.path(index));
        let (wave, info) = self.corpus.store.decode(recording.at as usize, &recording.path)?;
        let (found, told) = (info.samples, self.samples(index));
        if self.corpus.from_manifest && found.abs_diff(told) > MANIFEST_SLACK {
            let reason = format!("{found} samples at {SAMPLE_RATE} Hz, the manifest says {told}");
            return Err(Error::file(path, reason));
        }
        if found < self.config.min_samples() {
            let seconds = found as f64 / f64::from(SAMPLE_RATE);
            let least = self.config.min_seconds;
            return Err(Error::file(path, format!("{seconds:.2} s, min_seconds is {least}")));
        }
        Ok((wave, info))
    }

    /// What is said in the recordings at `indices`, where that is told beside them; `path` is what was opened.
    ///
    /// # Errors
    /// If a file of transcripts cannot be read, or does not fit the recordings.
    pub fn texts(&self, path: &Path, indices: &[usize]) -> Result<Vec<Option<String>>> {
        self.labels(LabelKind::Text, path, indices)
    }

    /// Classes of the recordings at `indices`: those of tables, else the names of their folders.
    ///
    /// # Errors
    /// As [`texts`](Self::texts).
    pub fn classes(&self, path: &Path, indices: &[usize]) -> Result<Vec<Option<String>>> {
        self.labels(LabelKind::Class, path, indices)
    }

    /// A recording as it is stored, not decoded.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] if it cannot be read.
    pub fn bytes(&self, index: usize) -> Result<Bytes> {
        let Recording { path, at, .. } = self.recording(index);
        self.corpus.store.bytes(*at as usize, path)
    }

    /// Texts or classes of the recordings at `indices`, where they are told; `path` is what was opened.
    ///
    /// # Errors
    /// If a shard or a file of labels cannot be read, or does not fit the recordings.
    pub(crate) fn labels(
        &self,
        kind: LabelKind,
        path: &Path,
        indices: &[usize],
    ) -> Result<Vec<Option<String>>> {
        let paths: Vec<&Path> = indices.iter().map(|&index| self.relative_path(index)).collect();
        let mut labels = match (&self.corpus.store, kind) {
            (Store::Folder(root), LabelKind::Text) => transcripts::texts(path, root, &paths)?,
            (Store::Folder(root), LabelKind::Class) => transcripts::classes(path, root, &paths)?,
            (shards, _) => {
                let label = |&index: &usize| {
                    let Recording { path, at, .. } = self.recording(index);
                    let told = shards.label(*at as usize, kind)?;
                    let folder = || (kind == LabelKind::Class).then(|| transcripts::folder(path));
                    Ok(told.or_else(|| folder().flatten()))
                };
                return indices.iter().map(label).collect();
            }
        };
        Ok(paths.into_iter().map(|path| labels.remove(path)).collect())
    }

    /// What relative paths are relative to.
    fn root(&self) -> &Path {
        self.corpus.store.root()
    }

    /// Only the recordings at `indices`, in that order.
    pub(crate) fn subset(&self, indices: &[usize]) -> Self {
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
        // Never longer than planned for, should an estimate have been short.
        let len = self.size(index) as usize;
        Ok(crop(self.read(index)?, len, rng))
    }

    fn collate(&self, examples: Vec<Vec<f32>>, rng: &mut StdRng) -> Result<Batch> {
        let lengths = examples.iter().map(Vec::len);
        let (shortest, longest) = (lengths.clone().min(), lengths.clone().max());
        let (Some(shortest), Some(longest)) = (shortest, longest) else {
            return Err(Error::Input("a batch of no recordings".into()));
        };
        let rows = examples.len();
        let tensor = |flat: &[f32], len: usize| {
            Tensor::from_slice(flat).reshape([rows as i64, len as i64]) // (B, S)
        };
        match self.config.batching {
            Batching::Crop => {
                let mut flat = Vec::with_capacity(rows * shortest);
                for example in examples {
                    flat.extend_from_slice(&crop(example, shortest, rng));
                }
                Batch::new(tensor(&flat, shortest))
            }
            Batching::Pad => {
                let mut flat = vec![0.0; rows * longest];
                for (row, example) in flat.chunks_exact_mut(longest.max(1)).zip(&examples) {
                    row[..example.len()].copy_from_slice(example);
                }
                Batch::padded(tensor(&flat, longest), lengths.map(|len| len as i64).collect())
            }
        }
    }
}

/// `len` samples of `wave` from a random place; the whole of it if it is not longer.
fn crop(mut wave: Vec<f32>, len: usize, rng: &mut StdRng) -> Vec<f32> {
    if wave.len() > len {
        let start = rng.random_range(0..=wave.len() - len);
        wave.copy_within(start..start + len, 0);
        wave.truncate(len);
    }
    wave
}
