//! Names of columns and keys that hold texts and labels: those of GLUE, and similar ones.

use data2vec_core::HeadTask;

/// Columns or keys of the text, or of the two texts of a pair; the first entry that exists is used.
pub(super) const TEXTS: [&[&str]; 8] = [
    &["text_a", "text_b"],
    &["sentence1", "sentence2"], // MNLI, RTE, STS-B, WNLI
    &["premise", "hypothesis"],
    &["question1", "question2"], // QQP
    &["#1 String", "#2 String"], // MRPC
    &["question", "sentence"],   // QNLI
    &["text"],
    &["sentence"], // SST-2
];
/// Columns or keys of a class. MNLI has the annotators' labels next to the agreed one.
pub(super) const CLASSES: [&str; 4] = ["label", "gold_label", "is_duplicate", "Quality"];
/// Column or key of a number.
pub(super) const SCORE: &str = "score";

/// The columns of a table that hold texts and label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    /// One column, or two for a pair.
    pub texts: Vec<usize>,
    pub label: usize,
    /// Number of columns of the table.
    pub count: usize,
    /// True if the first line names the columns.
    pub header: bool,
}

impl Columns {
    /// Finds the columns of a table by its first line.
    pub fn of_table(first: &[&str], task: HeadTask) -> Result<Self, String> {
        // CoLA has no header: source, label, mark of the author, sentence.
        if let [_, "0" | "1", _, _] = first {
            return Ok(Self { texts: vec![3], label: 1, count: 4, header: false });
        }
        let (texts, label) = find_names(first, task)?;
        let at = |name: &str| first.iter().position(|column| *column == name).unwrap_or_default();
        Ok(Self {
            texts: texts.iter().map(|name| at(name)).collect(),
            label: at(label),
            count: first.len(),
            header: true,
        })
    }

    /// Returns the columns of a file of ratings.
    pub fn of_ratings() -> Self {
        Self { texts: vec![2], label: 1, count: 3, header: false }
    }
}

/// Finds the names of the texts and of the label among the columns or keys `present`.
pub(super) fn find_names(
    present: &[&str],
    task: HeadTask,
) -> Result<(&'static [&'static str], &'static str), String> {
    let found = || {
        let list = present.iter().take(12).map(|name| name.chars().take(24).collect::<String>());
        format!("found {:?}", list.collect::<Vec<_>>())
    };
    let has = |name: &&str| present.contains(name);
    let texts = TEXTS.into_iter().find(|names| names.iter().all(has)).ok_or_else(|| {
        let known = TEXTS.map(|names| names.join(" and ")).join(", ");
        format!("no text column (looked for {known}); {}", found())
    })?;
    let class = || CLASSES.into_iter().find(has);
    let label = match task {
        HeadTask::Regression => Some(SCORE).filter(has).or_else(class),
        _ => class(),
    };
    match label {
        Some(label) => Ok((texts, label)),
        None if has(&SCORE) => {
            Err("`score` needs head.task = \"regression\"; classes are in `label`".into())
        }
        None => {
            let known = CLASSES.join(", ");
            Err(format!(
                "no label column (looked for {known}, or {SCORE} for regression); {}",
                found()
            ))
        }
    }
}
