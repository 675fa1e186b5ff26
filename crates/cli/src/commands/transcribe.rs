//! `data2vec transcribe`: recordings to text, with times.

use std::collections::BTreeSet;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use data2vec_core::HeadTask;
use data2vec_speech::ctc::{BeamConfig, BeamSearch, Labels, Lexicon};
use data2vec_speech::lm::LanguageModel;
use data2vec_speech::subtitles::{SubtitleConfig, cues, srt, vtt};
use data2vec_speech::{Recognizer, Transcript, audio};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::device::Place;
use crate::report::{check_failed, each_file, note, out};

/// What `transcribe` is told.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of a model that was fine-tuned to transcribe
    #[arg(long)]
    model: PathBuf,
    /// Recordings of any format and length; `-`: one from standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// What is written: the text, words with times as JSON, or subtitles
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// A folder for one file each, with the recording's name; without it: standard output
    #[arg(long)]
    out: Option<PathBuf>,
    /// How a beam search weighs texts
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    place: Place,
}

/// How texts are found: greedily, or by a beam search if any of these is given.
#[derive(clap::Args)]
pub struct SearchArgs {
    /// Texts that are followed at a time
    #[arg(long)]
    beam: Option<usize>,
    /// An n-gram language model: ARPA, also gzipped, or KenLM's binary form
    #[arg(long)]
    lm: Option<PathBuf>,
    /// How much the language model counts
    #[arg(long, requires = "lm", allow_hyphen_values = true)]
    lm_weight: Option<f32>,
    /// What each word adds, against the language model's liking for few
    #[arg(long, requires = "lm", allow_hyphen_values = true)]
    word_score: Option<f32>,
    /// The only words to be found: one a line, or with spellings as in flashlight
    #[arg(long)]
    lexicon: Option<PathBuf>,
}

impl SearchArgs {
    /// The recogniser that searches as asked.
    pub fn apply(&self, recognizer: Recognizer) -> Result<Recognizer> {
        match self.parts(recognizer.labels())? {
            None => Ok(recognizer),
            Some((config, lm, lexicon)) => Ok(recognizer.with_beam(config, lm, lexicon)?),
        }
    }

    /// The search that is asked for, for a head with these labels; `None`: greedily.
    pub fn search(&self, labels: &[String], task: HeadTask) -> Result<Option<BeamSearch>> {
        if task != HeadTask::Ctc {
            if self.beam.is_some() || self.lm.is_some() || self.lexicon.is_some() {
                bail!("--beam, --lm and --lexicon are for models that transcribe");
            }
            return Ok(None);
        }
        let labels = Labels::new(labels.to_vec())?;
        let Some((config, lm, lexicon)) = self.parts(&labels)? else { return Ok(None) };
        Ok(Some(BeamSearch::new(labels, config, lm, lexicon)?))
    }

    fn parts(&self, labels: &Labels) -> Result<Option<Parts>> {
        if self.beam.is_none() && self.lm.is_none() && self.lexicon.is_none() {
            return Ok(None);
        }
        let usual = BeamConfig::default();
        let config = BeamConfig {
            beam: self.beam.unwrap_or(usual.beam),
            lm_weight: self.lm_weight.unwrap_or(usual.lm_weight),
            word_score: self.word_score.unwrap_or(usual.word_score),
            ..usual
        };
        let lm = self.lm.as_ref().map(LanguageModel::load).transpose()?;
        let lexicon = self.lexicon.as_ref().map(|path| Lexicon::read(path, labels)).transpose()?;
        if let Some(lexicon) = lexicon.as_ref().filter(|lexicon| lexicon.left_out() > 0) {
            let (out, all) = (lexicon.left_out(), lexicon.len());
            note(format!(
                "lexicon: {out} spellings have symbols that the model lacks; {all} words remain"
            ));
        }
        Ok(Some((config, lm.map(Arc::new), lexicon.map(Arc::new))))
    }
}

/// What a beam search is made of.
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

    /// What a transcript looks like; `name` is told only where there are several.
    fn write(self, transcript: &Transcript, name: Option<&str>) -> Result<String> {
        /// Named, so that lines can be told apart.
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
pub fn run(args: &Args) -> Result<()> {
    let several = args.files.len() > 1;
    match &args.out {
        Some(folder) => {
            let mut names = BTreeSet::new();
            if let Some(twice) =
                args.files.iter().map(|file| stem(file)).find(|name| !names.insert(name.clone()))
            {
                bail!("two inputs are called {twice}; write them to different folders");
            }
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        None if several && matches!(args.format, Format::Srt | Format::Vtt) => {
            bail!("subtitles of several files need --out FOLDER")
        }
        None => {}
    }
    let recognizer = Recognizer::load(&args.model, args.place.device()?)?;
    let recognizer = args.search.apply(recognizer.in_precision(args.place.precision))?;
    let bar = ProgressBar::new(args.files.len() as u64); // on standard error, if that is a terminal
    let write = |path: &Path, transcript: Transcript| {
        match &args.out {
            Some(folder) => {
                let target = folder.join(format!("{}.{}", stem(path), args.format.extension()));
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
    check_failed(failed, &args.files)
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

/// What a file's transcript is called in a folder.
fn stem(path: &Path) -> String {
    match path.to_str() {
        Some("-") => "stdin".into(),
        _ => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    }
}
