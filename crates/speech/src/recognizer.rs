//! A fine-tuned recogniser, from samples of any length to words.

use std::path::Path;
use std::sync::Arc;

use data2vec_core::{Batch, Error, HeadTask, Precision, Result, Tuned};
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::{
    WaveEncoder, WaveEncoderConfig,
    audio::{self, SAMPLE_RATE},
    ctc::{self, BeamConfig, BeamSearch, Decoded, Labels, Lexicon},
    encoder::to_array,
    lm::LanguageModel,
};

/// What goes through the network at once, in seconds: attention's memory grows with its square.
const CHUNK: usize = 30;
/// Seconds that two chunks have in common. Each one's outputs are used up to the middle.
const OVERLAP: usize = 4;

/// A word and when it was said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Word {
    /// The word.
    pub text: String,
    /// When it begins, in seconds.
    pub start: f32,
    /// When it ends, in seconds.
    pub end: f32,
    /// How sure the recogniser is, 0 to 1: [`ctc::DecodedWord::score`].
    pub score: f32,
}

/// What was said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Transcript {
    /// All of it.
    pub text: String,
    /// Its words, in the order of their times.
    pub words: Vec<Word>,
}

/// A model that was fine-tuned with CTC, ready for inference.
///
/// ```no_run
/// use data2vec_speech::{Recognizer, audio};
///
/// let recognizer = Recognizer::load("runs/speech-tiny-finetuned/model", tch::Device::Cpu)?;
/// let transcript = recognizer.transcribe(&audio::read("hello.wav")?)?;
/// for word in &transcript.words {
///     println!("{:.2} s: {}", word.start, word.text);
/// }
/// # Ok::<(), data2vec_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Recognizer {
    model: Tuned<WaveEncoder>,
    labels: Labels,
    search: Option<BeamSearch>,
    device: Device,
    chunk: Chunking,
}

impl Recognizer {
    /// Reads the folder that fine-tuning, or an import, wrote. It decodes greedily; see
    /// [`with_beam`](Self::with_beam).
    ///
    /// # Errors
    /// If a file is missing or broken, or holds a model of another kind or for another task.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let model = Tuned::<WaveEncoder>::load(dir, device)?;
        check_task(&model, HeadTask::Ctc, dir)?;
        let labels = Labels::new(model.labels().to_vec())
            .map_err(|error| Error::file(dir, format!("its labels are of no use: {error}")))?;
        let chunk = Chunking::new(&model.config().features);
        Ok(Self { model, labels, search: None, device, chunk })
    }

    /// The same with a beam search, and with a language model and a list of words if there are any.
    ///
    /// # Errors
    /// [`Error::Config`] if a setting is impossible.
    pub fn with_beam(
        self,
        config: BeamConfig,
        lm: Option<Arc<LanguageModel>>,
        lexicon: Option<Arc<Lexicon>>,
    ) -> Result<Self> {
        let search = BeamSearch::new(self.labels.clone(), config, lm, lexicon)?;
        Ok(Self { search: Some(search), ..self })
    }

    /// Computes in `precision` from now on; answers are f32 in any. bf16 is the faster one on hardware that has it.
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { model: self.model.in_precision(precision), ..self }
    }

    /// What its outputs mean.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Seconds from one output to the next.
    pub fn frame_seconds(&self) -> f64 {
        self.model.config().features.hop() as f64 / f64::from(SAMPLE_RATE)
    }

    /// What is said in mono `samples` at 16 kHz.
    ///
    /// # Errors
    /// [`Error::Input`] for samples that are too few or not finite.
    pub fn transcribe(&self, samples: &[f32]) -> Result<Transcript> {
        let decoded = self.decode(self.log_probs(samples)?.view())?;
        let seconds = |frame: usize| (frame as f64 * self.frame_seconds()) as f32;
        let words = decoded.words.into_iter().map(|word| Word {
            text: word.text,
            start: seconds(word.start),
            end: seconds(word.end),
            score: word.score,
        });
        Ok(Transcript { text: decoded.text, words: words.collect() })
    }

    /// `(T, C)`: the natural logarithms of the labels' probabilities in each frame.
    ///
    /// Up to 30 seconds go through the network at once. A longer recording is cut into chunks of 30
    /// seconds that overlap by 4; of two chunks, the first one's frames count up to the middle of the
    /// overlap, so that each frame has been heard with 2 seconds on both sides at least. Where the
    /// encoder wants its input normalised, the whole recording is, before it is cut.
    ///
    /// # Errors
    /// As [`transcribe`](Self::transcribe).
    pub fn log_probs(&self, samples: &[f32]) -> Result<Array2<f32>> {
        let samples = prepared(samples, &self.model)?;
        let mut parts = Vec::new();
        for chunk in self.chunk.of(samples.len()) {
            let logits = logits(&self.model, &samples[chunk.samples], self.device)?; // (1, T, C)
            let log_probs = logits.log_softmax(-1, Kind::Float).squeeze_dim(0); // (T, C)
            let log_probs = to_array(&log_probs)?;
            let end = chunk.frames.end.min(log_probs.nrows());
            parts.push(log_probs.slice_move(s![chunk.frames.start..end, ..]));
        }
        let views: Vec<ArrayView2<f32>> = parts.iter().map(Array2::view).collect();
        concatenate(Axis(0), &views).map_err(|error| Error::Input(error.to_string()))
    }

    /// The best text for `log_probs` `(T, C)`, as [`log_probs`](Self::log_probs) gives them.
    ///
    /// # Errors
    /// [`Error::Input`] if they have another number of labels.
    pub fn decode(&self, log_probs: ArrayView2<f32>) -> Result<Decoded> {
        match &self.search {
            None => ctc::greedy(log_probs, &self.labels),
            Some(search) => {
                let best = search.decode(log_probs)?.into_iter().next();
                best.ok_or_else(|| Error::Input("nothing to decode".into()))
            }
        }
    }
}

/// A model that was fine-tuned to tell classes of recordings, ready for inference.
///
/// ```no_run
/// use data2vec_speech::{AudioClassifier, audio};
///
/// let classifier = AudioClassifier::load("runs/commands/model", tch::Device::Cpu)?;
/// let classes = classifier.classify(&audio::read("hello.wav")?)?;
/// println!("{}: {:.0} %", classes[0].0, 100.0 * classes[0].1);
/// # Ok::<(), data2vec_core::Error>(())
/// ```
#[derive(Debug)]
pub struct AudioClassifier {
    model: Tuned<WaveEncoder>,
    device: Device,
    chunk: Chunking,
}

impl AudioClassifier {
    /// Reads the folder that fine-tuning, or an import, wrote.
    ///
    /// # Errors
    /// If a file is missing or broken, or holds a model of another kind or for another task.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let model = Tuned::<WaveEncoder>::load(dir, device)?;
        check_task(&model, HeadTask::Classification, dir)?;
        let chunk = Chunking::new(&model.config().features);
        Ok(Self { model, device, chunk })
    }

    /// Computes in `precision` from now on; answers are f32 in any. bf16 is the faster one on hardware that has it.
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { model: self.model.in_precision(precision), ..self }
    }

    /// The classes in the order of the outputs.
    pub fn labels(&self) -> &[String] {
        self.model.labels()
    }

    /// All classes and their probabilities for mono `samples` at 16 kHz, the most probable first. Of a
    /// recording of more than 30 seconds it is the mean over overlapping chunks of so many, each by its length.
    ///
    /// # Errors
    /// [`Error::Input`] for samples that are too few or not finite.
    pub fn classify(&self, samples: &[f32]) -> Result<Vec<(String, f32)>> {
        let samples = prepared(samples, &self.model)?;
        let mut mean = vec![0.0_f64; self.labels().len()];
        let chunks = self.chunk.of(samples.len());
        let heard: usize = chunks.iter().map(|chunk| chunk.samples.len()).sum();
        for chunk in &chunks {
            let logits = logits(&self.model, &samples[chunk.samples.clone()], self.device)?; // (1, C)
            let probs = logits.softmax(-1, Kind::Float).to_device(Device::Cpu).squeeze_dim(0); // (C)
            for (sum, prob) in mean.iter_mut().zip(Vec::<f32>::try_from(probs)?) {
                *sum += f64::from(prob) * chunk.samples.len() as f64 / heard as f64;
            }
        }
        let ranked = self.model.ranked(mean).into_iter();
        Ok(ranked.map(|(label, prob)| (label, prob as f32)).collect())
    }
}

fn check_task(model: &Tuned<WaveEncoder>, task: HeadTask, dir: &Path) -> Result<()> {
    let name = |task| match task {
        HeadTask::Ctc => "transcription (ctc)",
        HeadTask::Classification => "classification",
        HeadTask::Regression => "regression",
    };
    let found = model.head_config().task;
    if found == task {
        return Ok(());
    }
    let reason = format!("its head is for {}, not for {}", name(found), name(task));
    Err(Error::file(dir, reason))
}

/// Checked, and normalised if the encoder was trained so.
fn prepared(samples: &[f32], model: &Tuned<WaveEncoder>) -> Result<Vec<f32>> {
    if let Some(at) = samples.iter().position(|x| !x.is_finite()) {
        return Err(Error::Input(format!("sample {at} is not a number")));
    }
    let mut samples = samples.to_vec();
    if model.config().features.normalize {
        audio::normalize(&mut samples);
    }
    Ok(samples)
}

fn logits(model: &Tuned<WaveEncoder>, samples: &[f32], device: Device) -> Result<Tensor> {
    let inputs = Tensor::from_slice(samples).unsqueeze(0).to_device(device); // (1, S)
    Ok(model.forward(&Batch::new(inputs)?)?.0)
}

/// How long recordings are cut, in samples; multiples of the encoder's hop, so that the frames of all
/// chunks lie on one grid.
#[derive(Clone, Copy, Debug)]
struct Chunking {
    hop: usize,
    chunk: usize,
    overlap: usize,
}

/// A stretch of samples, and those of its frames that are used.
#[derive(Debug, PartialEq)]
struct Chunk {
    samples: std::ops::Range<usize>,
    frames: std::ops::Range<usize>,
}

impl Chunking {
    fn new(features: &WaveEncoderConfig) -> Self {
        let hop = features.hop() as usize;
        // An even number of hops has a middle.
        let samples = |seconds: usize| (seconds * SAMPLE_RATE as usize).next_multiple_of(2 * hop);
        Self { hop, chunk: samples(CHUNK), overlap: samples(OVERLAP) }
    }

    fn of(&self, len: usize) -> Vec<Chunk> {
        let step = self.chunk - self.overlap;
        let margin = self.overlap / 2 / self.hop;
        // The last chunk is as short as it must be, but longer than the overlap.
        let count = len.saturating_sub(self.overlap).div_ceil(step).max(1);
        let chunk = |at: usize| {
            let start = at * step;
            let (first, last) = (at == 0, at + 1 == count);
            Chunk {
                samples: start..if last { len } else { start + self.chunk },
                frames: if first { 0 } else { margin }..if last {
                    usize::MAX
                } else {
                    step / self.hop + margin
                },
            }
        };
        (0..count).map(chunk).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_everything_once() {
        let chunking = Chunking { hop: 320, chunk: 9_600, overlap: 1_280 };
        assert_eq!(chunking.of(9_600).len(), 1);
        assert_eq!(chunking.of(0), [Chunk { samples: 0..0, frames: 0..usize::MAX }]);
        for len in [9_601, 10_000, 17_920, 17_921, 100_000] {
            let chunks = chunking.of(len);
            assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk.samples.len() <= 9_600));
            assert!(chunks.iter().all(|chunk| chunk.samples.len() > 1_280), "{len}: {chunks:?}");
            let mut next = 0; // frame of the whole
            for chunk in &chunks {
                let offset = chunk.samples.start / 320;
                assert_eq!((chunk.samples.start % 320, offset + chunk.frames.start), (0, next));
                next = offset.saturating_add(chunk.frames.end);
            }
            assert_eq!((chunks[0].frames.start, chunks[chunks.len() - 1].samples.end), (0, len));
        }
        assert_eq!(
            chunking.of(10_000),
            [
                Chunk { samples: 0..9_600, frames: 0..28 },
                Chunk { samples: 8_320..10_000, frames: 2..usize::MAX }
            ]
        );
    }
}
