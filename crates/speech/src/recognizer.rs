//! Inference with a fine-tuned CTC model: samples of any length to words with times.

use std::path::Path;
use std::sync::Arc;

use data2vec_core::data::batch::to_array;
use data2vec_core::{Error, FinetunedModel, HeadTask, Precision, Result};
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use serde::Serialize;
use tch::{Device, Kind};

use crate::audio::SAMPLE_RATE;
use crate::chunking::{Chunk, Chunking};
use crate::ctc::{self, BeamConfig, BeamSearch, Decoded, Labels, Lexicon};
use crate::feature::WaveEncoder;
use crate::lm::LanguageModel;
use crate::preprocess::{can_pad, pad, prepare};

/// Most samples of a padded batch: those of one full chunk.
const MAX_BATCH: usize = 30 * SAMPLE_RATE as usize;

/// A word of a transcript with its times.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Word {
    /// The word.
    pub text: String,
    /// Start in seconds.
    pub start: f32,
    /// End in seconds.
    pub end: f32,
    /// Confidence from 0 to 1: [`ctc::DecodedWord::score`].
    pub score: f32,
}

/// A transcript of a recording.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Transcript {
    /// The full text.
    pub text: String,
    /// The words in order of time.
    pub words: Vec<Word>,
}

/// A model fine-tuned with CTC, for inference.
///
/// ```no_run
/// use data2vec_speech::{Recognizer, audio};
///
/// let recognizer = Recognizer::load("runs/speech-tiny-finetuned/model", tch::Device::Cpu)?;
/// let transcript = recognizer.transcribe(&audio::read("hello.wav")?)?;
/// for word in &transcript.words {
///     println!("{:.2} s: {}", word.start, word.text);
/// }
/// # Ok::<(), data2vec_speech::Error>(())
/// ```
#[derive(Debug)]
pub struct Recognizer {
    model: FinetunedModel<WaveEncoder>,
    labels: Labels,
    search: Option<BeamSearch>,
    device: Device,
    chunking: Chunking,
}

impl Recognizer {
    /// Loads a fine-tuned or imported model from the directory `dir`. It decodes greedily; see
    /// [`with_beam`](Self::with_beam).
    ///
    /// # Errors
    /// Returns an error if a file is missing or invalid, belongs to another feature encoder, or
    /// the head is not for CTC.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let model = FinetunedModel::<WaveEncoder>::load(dir, device)?;
        let task = model.head_config().task;
        if task != HeadTask::Ctc {
            let reason = format!("the head is for {task:?}, not for transcription (CTC)");
            return Err(Error::file(dir, reason));
        }
        let labels = Labels::new(model.labels().to_vec())
            .map_err(|error| Error::file(dir, format!("the labels are invalid: {error}")))?;
        let chunking = Chunking::new(&model.config().features);
        Ok(Self { model, labels, search: None, device, chunking })
    }

    /// Sets beam search as the decoder, with an optional language model and lexicon.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if a setting is invalid.
    pub fn with_beam(
        self,
        config: BeamConfig,
        lm: Option<Arc<LanguageModel>>,
        lexicon: Option<Arc<Lexicon>>,
    ) -> Result<Self> {
        let search = BeamSearch::new(self.labels.clone(), config, lm, lexicon)?;
        Ok(Self { search: Some(search), ..self })
    }

    /// Sets the precision of inference; log-probabilities are always f32. bf16 is faster on hardware
    /// that supports it.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { model: self.model.with_precision(precision), ..self }
    }

    /// Returns the labels of the outputs.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Returns the time between consecutive frames in seconds.
    pub fn frame_seconds(&self) -> f64 {
        self.model.config().features.hop() as f64 / f64::from(SAMPLE_RATE)
    }

    /// Transcribes mono `samples` at 16 kHz.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the samples are too few or not finite.
    pub fn transcribe(&self, samples: &[f32]) -> Result<Transcript> {
        self.transcript(self.log_probs(samples)?.view())
    }

    /// Transcribes recordings of mono samples at 16 kHz, short ones in padded batches.
    ///
    /// Log-probabilities equal those of [`transcribe`](Self::transcribe) up to rounding.
    ///
    /// # Errors
    /// Returns the errors of [`transcribe`](Self::transcribe) for any recording.
    pub fn transcribe_batch(&self, recordings: &[impl AsRef<[f32]>]) -> Result<Vec<Transcript>> {
        let recordings: Vec<&[f32]> = recordings.iter().map(AsRef::as_ref).collect();
        let all = self.log_probs_batch(&recordings)?;
        all.iter().map(|log_probs| self.transcript(log_probs.view())).collect()
    }

    fn transcript(&self, log_probs: ArrayView2<f32>) -> Result<Transcript> {
        let decoded = self.decode(log_probs)?;
        let seconds = |frame: usize| (frame as f64 * self.frame_seconds()) as f32;
        let words = decoded.words.into_iter().map(|word| Word {
            text: word.text,
            start: seconds(word.start),
            end: seconds(word.end),
            score: word.score,
        });
        Ok(Transcript { text: decoded.text, words: words.collect() })
    }

    /// Returns the natural log-probabilities `(T, C)` of the labels in each frame.
    ///
    /// Recordings of more than 30 s are split into chunks that overlap by 4 s. Of two chunks, each is
    /// used up to the middle of the overlap, so that every frame has at least 2 s of context on both
    /// sides. A recording is normalized as a whole, before it is split, if the encoder was trained
    /// so.
    ///
    /// # Errors
    /// Returns the errors of [`transcribe`](Self::transcribe).
    pub fn log_probs(&self, samples: &[f32]) -> Result<Array2<f32>> {
        let mut all = self.log_probs_batch(&[samples])?;
        all.pop().ok_or_else(|| Error::Input("there is no recording".into()))
    }

    /// Returns the log-probabilities `(T, C)` of each recording.
    fn log_probs_batch(&self, recordings: &[&[f32]]) -> Result<Vec<Array2<f32>>> {
        let features = &self.model.config().features;
        let prepared = recordings.iter().map(|samples| prepare(samples, features));
        let prepared = prepared.collect::<Result<Vec<_>>>()?;
        let chunks = prepared.iter().enumerate().flat_map(|(recording, samples)| {
            self.chunking.split(samples.len()).into_iter().map(move |chunk| (recording, chunk))
        });
        let chunks: Vec<(usize, Chunk)> = chunks.collect();
        let samples = |index: usize| {
            let (recording, chunk) = &chunks[index];
            &prepared[*recording][chunk.samples.clone()]
        };
        let mut order: Vec<usize> = (0..chunks.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(samples(index).len())); // stable
        let mut parts: Vec<Option<Array2<f32>>> = chunks.iter().map(|_| None).collect();
        let mut rest = &order[..];
        while let Some(&longest) = rest.first() {
            let rows = (MAX_BATCH / samples(longest).len().max(1)).clamp(1, rest.len());
            let group: Vec<&[f32]> = rest[..rows].iter().map(|&index| samples(index)).collect();
            let rows = if can_pad(&group, features) { rows } else { 1 };
            let batch = pad(&group[..rows], self.device)?;
            let (scores, hidden) = self.model.forward(&batch)?; // (B, T, C)
            let log_probs = scores.log_softmax(-1, Kind::Float);
            let group;
            (group, rest) = rest.split_at(rows);
            for (row, &index) in (0..).zip(group) {
                let frames = &chunks[index].1.frames;
                let end = frames.end.min(hidden.lengths[row as usize] as usize);
                let log_probs = to_array(&log_probs.get(row))?; // (T, C)
                parts[index] = Some(log_probs.slice_move(s![frames.start..end, ..]));
            }
        }
        let of_recording = |recording: usize| {
            let own = chunks.iter().zip(&parts).filter(|((of, _), _)| *of == recording);
            let views: Vec<ArrayView2<f32>> =
                own.filter_map(|(_, part)| part.as_ref().map(Array2::view)).collect();
            concatenate(Axis(0), &views).map_err(|error| Error::Input(error.to_string()))
        };
        (0..recordings.len()).map(of_recording).collect()
    }

    /// Decodes log-probabilities `(T, C)` as returned by [`log_probs`](Self::log_probs).
    ///
    /// # Errors
    /// Returns [`Error::Input`] if C is not the number of labels.
    pub fn decode(&self, log_probs: ArrayView2<f32>) -> Result<Decoded> {
        match &self.search {
            None => ctc::greedy(log_probs, &self.labels),
            Some(search) => {
                let best = search.decode(log_probs)?.into_iter().next();
                best.ok_or_else(|| Error::Input("beam search found no text".into()))
            }
        }
    }
}
