//! Where texts and labels are in the files of labelled corpora: GLUE's, and what is like them.

use std::path::{Path, PathBuf};

use data2vec_core::{Error, HeadTask, Result};
use data2vec_source::{has_shards, is_of_shards};

/// Columns or keys that hold the text, or the two texts of a pair; the first of these that are there.
pub(crate) const TEXTS: [&[&str]; 8] = [
    &["text_a", "text_b"],
    &["sentence1", "sentence2"], // MNLI, RTE, STS-B, WNLI
    &["premise", "hypothesis"],
    &["question1", "question2"], // QQP
    &["#1 String", "#2 String"], // MRPC
    &["question", "sentence"],   // QNLI
    &["text"],
    &["sentence"], // SST-2
];
/// That hold a class. MNLI has annotators' labels beside the agreed one.
pub(crate) const CLASSES: [&str; 4] = ["label", "gold_label", "is_duplicate", "Quality"];
/// That hold a number.
pub(crate) const SCORE: &str = "score";

/// The files of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledFiles {
    /// To train on.
    pub train: PathBuf,
    /// To validate on: none, one, or MNLI's two.
    pub validation: Vec<PathBuf>,
}

impl LabelledFiles {
    /// At `path`: one file, to train on, or a folder that holds `train.tsv` and perhaps `dev.tsv` (or
    /// `dev_matched.tsv` and `dev_mismatched.tsv`, `valid.tsv`, `validation.tsv`), or the same as `.jsonl`,
    /// each of them gzipped or not; or a single file of such a kind; or shards, and a folder with shards alone.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if nothing of that kind is there.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |e| Error::io(path, e);
        if is_of_shards(path) || !std::fs::metadata(path).map_err(io)?.is_dir() {
            return Ok(Self { train: path.to_owned(), validation: Vec::new() });
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(io)? {
            let file = entry.map_err(io)?.path();
            if file.is_file() && kind(&file) != Kind::Other {
                files.push(file);
            }
        }
        files.sort();
        let named = |name: &str| files.iter().find(|file| stem(file) == name).cloned();
        if let Some(train) = named("train") {
            let names = ["dev", "dev_matched", "dev_mismatched", "valid", "validation"];
            return Ok(Self { train, validation: names.into_iter().filter_map(named).collect() });
        }
        match &files[..] {
            [one] => Ok(Self { train: one.clone(), validation: Vec::new() }),
            [] if has_shards(path) => Ok(Self { train: path.to_owned(), validation: Vec::new() }),
            _ => {
                let reason = format!(
                    "holds neither train.tsv nor train.jsonl, but {} files of labelled texts (.tsv, \
                     .jsonl, or .gz of them); name one of them",
                    files.len()
                );
                Err(Error::file(path, reason))
            }
        }
    }
}

/// How a file is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Tab-separated, the first line names the columns.
    Table,
    /// A JSON object a line.
    Json,
    /// `ID<TAB>RATING<TAB>TEXT`, rated from -4 to 4 by twenty people each (Hutto and Gilbert 2014).
    Ratings,
    /// Something else.
    Other,
}

/// What the name of a file tells.
pub(crate) fn kind(path: &Path) -> Kind {
    let name = plain_name(path);
    match name.rsplit_once('.') {
        Some((_, "tsv")) => Kind::Table,
        Some((_, "jsonl" | "ndjson")) => Kind::Json,
        Some((stem, "txt")) if stem.ends_with("_groundtruth") => Kind::Ratings,
        _ => Kind::Other,
    }
}

/// The name in small letters, without `.gz`.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    name.strip_suffix(".gz").map_or(name.clone(), str::to_owned)
}

fn stem(path: &Path) -> String {
    let name = plain_name(path);
    name.split_once('.').map_or(name.clone(), |(stem, _)| stem.to_owned())
}

/// Where a line's texts and its label are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    /// One, or two of a pair.
    pub texts: Vec<usize>,
    pub label: usize,
    /// How many there are.
    pub count: usize,
    /// Whether the first line names them.
    pub header: bool,
}

impl Columns {
    /// Of a table whose first line is this.
    pub fn of_table(first: &[&str], task: HeadTask) -> std::result::Result<Self, String> {
        // CoLA: source, label, mark of the author, sentence.
        if let [_, "0" | "1", _, _] = first {
            return Ok(Self { texts: vec![3], label: 1, count: 4, header: false });
        }
        let (texts, label) = names(first, task)?;
        // Both are known to be there.
        let at = |name: &str| first.iter().position(|column| *column == name).unwrap_or_default();
        Ok(Self {
            texts: texts.iter().map(|name| at(name)).collect(),
            label: at(label),
            count: first.len(),
            header: true,
        })
    }

    /// Of a file of ratings.
    pub fn of_ratings() -> Self {
        Self { texts: vec![2], label: 1, count: 3, header: false }
    }
}

/// The columns or keys of texts and label among those that are `there`.
pub(crate) fn names(
    there: &[&str],
    task: HeadTask,
) -> std::result::Result<(&'static [&'static str], &'static str), String> {
    let found = || {
        let list = there.iter().take(12).map(|name| name.chars().take(24).collect::<String>());
        format!("found {:?}", list.collect::<Vec<_>>())
    };
    let has = |name: &&str| there.contains(name);
    let texts = TEXTS.into_iter().find(|names| names.iter().all(has)).ok_or_else(|| {
        let known = TEXTS.map(|names| names.join(" and ")).join(", ");
        format!("nothing is named as text ({known}); {}", found())
    })?;
    let class = || CLASSES.into_iter().find(has);
    let label = match task {
        HeadTask::Regression => Some(SCORE).filter(has).or_else(class),
        _ => class(),
    };
    match label {
        Some(label) => Ok((texts, label)),
        None if has(&SCORE) => {
            Err("`score` is for head.task = \"regression\"; classes are in `label`".into())
        }
        None => {
            let known = CLASSES.join(", ");
            Err(format!(
                "nothing is named as label ({known}, or {SCORE} for regression); {}",
                found()
            ))
        }
    }
}
