//! `data2vec transcribe`: transcribes recordings.

use std::collections::BTreeSet;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use data2vec_core::HeadTask;
use data2vec_core::eval::score::SequenceDecoder;
use data2vec_speech::ctc::{BeamConfig, BeamSearch, Labels, Lexicon, SymbolDecoder};
use data2vec_speech::lm::LanguageModel;
use data2vec_speech::subtitles::{SubtitleConfig, cues, srt, vtt};
use data2vec_speech::{Recognizer, Transcript, audio};
use indicatif::ProgressBar;
use serde::Serialize;
use tracing::warn;

use crate::commands::shared::{ComputeArgs, HeadArgs};
use crate::terminal::{check_failed, each_file, out};

/// Arguments of `transcribe`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory of a model fine-tuned for transcription
    #[arg(long)]
    model: PathBuf,
    /// Audio files of any format and length; - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Output format: plain text, JSON with word times, or subtitles
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Directory to write one file per recording to [default: standard output]
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    head: HeadArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Options of the beam search; decoding is greedy if none is given.
#[derive(clap::Args)]
pub struct SearchArgs {
    /// Beam width [default: 100 with --lm or --lexicon, otherwise greedy decoding]
    #[arg(long)]
    beam: Option<usize>,
    /// N-gram language model: ARPA, also gzipped, or KenLM's binary format
    #[arg(long)]
    lm: Option<PathBuf>,
    /// Weight of the language model [default: 0.5]
    #[arg(long, requires = "lm", allow_hyphen_values = true)]
    lm_weight: Option<f32>,
    /// Score added per word, against the language model's bias towards few words [default: 1.0]
    #[arg(long, requires = "lm", allow_hyphen_values = true)]
    word_score: Option<f32>,
    /// Lexicon of allowed words: one word a line, or words with spellings as in flashlight
    #[arg(long)]
    lexicon: Option<PathBuf>,
}

impl SearchArgs {
    /// Sets the decoder of a recognizer.
    pub fn apply(&self, recognizer: Recognizer) -> Result<Recognizer> {
        match self.parts(recognizer.labels())? {
            None => Ok(recognizer),
            Some((config, lm, lexicon)) => Ok(recognizer.with_beam(config, lm, lexicon)?),
        }
    }

    /// Returns the beam search for a CTC head with these labels; `None` for greedy decoding.
    pub fn decoder(
        &self,
        labels: &[String],
        task: HeadTask,
    ) -> Result<Option<Box<dyn SequenceDecoder>>> {
        if task != HeadTask::Ctc {
            if self.beam.is_some() || self.lm.is_some() || self.lexicon.is_some() {
                bail!("--beam, --lm and --lexicon need a model fine-tuned for transcription");
            }
            return Ok(None);
        }
        let labels = Labels::new(labels.to_vec())?;
        let Some((config, lm, lexicon)) = self.parts(&labels)? else { return Ok(None) };
        let search = BeamSearch::new(labels.clone(), config, lm, lexicon)?;
        Ok(Some(Box::new(SymbolDecoder::with_search(labels, search))))
    }

    fn parts(&self, labels: &Labels) -> Result<Option<Parts>> {
        if self.beam.is_none() && self.lm.is_none() && self.lexicon.is_none() {
            return Ok(None);
        }
        let defaults = BeamConfig::default();
        let config = BeamConfig {
            beam: self.beam.unwrap_or(defaults.beam),
            lm_weight: self.lm_weight.unwrap_or(defaults.lm_weight),
            word_score: self.word_score.unwrap_or(defaults.word_score),
            ..defaults
        };
        let lm = self.lm.as_ref().map(LanguageModel::load).transpose()?;
        let lexicon = self.lexicon.as_ref().map(|path| Lexicon::read(path, labels)).transpose()?;
        if let Some(lexicon) = lexicon.as_ref().filter(|lexicon| lexicon.left_out() > 0) {
            let (out, all) = (lexicon.left_out(), lexicon.len());
            warn!(
                "lexicon: skipped {out} spellings with symbols that the model lacks; {all} words remain"
            );
        }
        Ok(Some((config, lm.map(Arc::new), lexicon.map(Arc::new))))
    }
}

/// Parts of a beam search.
type Parts = (BeamConfig, Option<Arc<LanguageModel>>, Option<Arc<Lexicon>>);

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
    Srt,
    Vtt,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Self::Text => "txt",
            Self::Json => "json",
            Self::Srt => "srt",
            Self::Vtt => "vtt",
        }
    }

    /// Formats a transcript; `name` is given if there are several.
    fn write(self, transcript: &Transcript, name: Option<&str>) -> Result<String> {
        /// One line of `--format json`.
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            file: Option<&'a str>,
            #[serde(flatten)]
            transcript: &'a Transcript,
        }
        let cues = || cues(transcript, &SubtitleConfig::default());
        Ok(match (self, name) {
            (Self::Text, None) => transcript.text.clone() + "\n",
            (Self::Text, Some(name)) => format!("{name}\t{}\n", transcript.text),
            (Self::Json, file) => serde_json::to_string(&Line { file, transcript })? + "\n",
            (Self::Srt, _) => srt(&cues()),
            (Self::Vtt, _) => vtt(&cues()),
        })
    }
}

/// Transcribes every file.
pub fn run(args: &Args) -> Result<ExitCode> {
    let several = args.files.len() > 1;
    match &args.out {
        Some(dir) => {
            let mut names = BTreeSet::new();
            if let Some(name) =
                args.files.iter().map(|file| stem(file)).find(|name| !names.insert(name.clone()))
            {
                bail!(
                    "--out {}: two inputs are called {name}; write them to different directories",
                    dir.display()
                );
            }
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        None if several && matches!(args.format, Format::Srt | Format::Vtt) => {
            bail!("subtitles of several files need --out DIR")
        }
        None => {}
    }
    let recognizer = Recognizer::load(&args.model, args.compute.device()?)?;
    let recognizer = args.search.apply(recognizer.with_precision(args.compute.precision))?;
    let bar = ProgressBar::new(args.files.len() as u64); // shown only on a terminal
    let write = |path: &Path, transcript: Transcript| {
        match &args.out {
            Some(dir) => {
                let target = dir.join(format!("{}.{}", stem(path), args.format.extension()));
                let text = args.format.write(&transcript, None)?;
                std::fs::write(&target, text).with_context(|| target.display().to_string())?;
            }
            None => {
                let name = path.display().to_string();
                let text = args.format.write(&transcript, several.then_some(&name))?;
                bar.suspend(|| out!("{}", text.trim_end_matches('\n')));
            }
        }
        Ok(())
    };
    let failed = each_file(&args.files, &bar, |path| transcribe(&recognizer, path), write)?;
    check_failed(failed, &args.files)?;
    Ok(ExitCode::SUCCESS)
}

fn transcribe(recognizer: &Recognizer, path: &Path) -> Result<Transcript> {
    let samples = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
        audio::read_from(Cursor::new(bytes), "standard input")?
    } else {
        audio::read(path)?
    };
    recognizer.transcribe(&samples).with_context(|| path.display().to_string())
}

/// Returns the stem of the output file's name.
fn stem(path: &Path) -> String {
    match path.to_str() {
        Some("-") => "stdin".into(),
        _ => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    }
}
