//! What is said in recordings, found beside them.
//!
//! | where | what |
//! |---|---|
//! | a manifest `NAME.tsv` of fairseq | `NAME.ltr` (`H E L L O \| W O R L D \|`) or `NAME.wrd`, line by line |
//! | any `.tsv` whose first line is `path<TAB>text` or `path<TAB>label` | paths relative to it |
//! | LibriSpeech's `*.trans.txt` | `NAME TEXT` for the recordings in its folder |
//! | `NAME.txt` or `NAME.lab` beside `NAME.wav` | the text |
//! | Asterisk's `*-sounds-*.txt` | `KEY: text`, the key being the end of a path without extension |
//! | Sphinx's `*.transcription` | `text (NAME)` for the recordings in its folder |
//! | the game Fish Fillets | `script/LEVEL/dialogs_LANGUAGE.lua` for `sound/LEVEL/LANGUAGE` |
//!
//! Of several for one recording, the one further up in the table counts.

mod formats;
mod text;

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use data2vec_core::{Error, Result};

pub use text::{Case, normalize};

use crate::{
    corpus::{Table, table_kind},
    text_file::read_text,
};

/// What [`texts`] looks for, for messages.
pub(crate) const LOOKED_FOR: &str = "NAME.ltr or NAME.wrd beside a manifest, tables `path<TAB>text` (.tsv), *.trans.txt, \
                                     NAME.txt or NAME.lab beside NAME.wav, *-sounds-*.txt, *.transcription";

/// Labels of recordings, by path relative to their root.
pub(crate) type Labels = HashMap<PathBuf, String>;

/// Files that a folder holds, by how they tell transcripts.
#[derive(Default)]
struct Found {
    tables: Vec<(Table, PathBuf)>,
    libri: Vec<PathBuf>,
    prompts: Vec<PathBuf>,
    sphinx: Vec<PathBuf>,
    /// Stem and file.
    single: HashMap<String, PathBuf>,
}

/// The transcripts of `recordings` (paths relative to `root`), which were listed from `path`.
///
/// # Errors
/// If a file of transcripts cannot be read, or does not fit the recordings.
pub(crate) fn texts(path: &Path, root: &Path, recordings: &[&Path]) -> Result<Labels> {
    let mut texts = Labels::new();
    if path.extension() == Some(OsStr::new("tsv")) {
        match table_kind(path)? {
            Some(Table::Text) => formats::table(path, root, &mut texts)?,
            Some(Table::Label) => {}
            None => beside_manifest(path, &mut texts)?,
        }
    }
    let found = look_around(root, recordings)?;
    tables(&found, Table::Text, root, &mut texts)?;
    for (folder, files) in &found {
        for file in &files.libri {
            formats::libri(file, folder, recordings, &mut texts)?;
        }
    }
    let by_folder: HashMap<&Path, &Found> =
        found.iter().map(|(folder, files)| (*folder, files)).collect();
    for &recording in recordings {
        let files = recording.parent().and_then(|folder| by_folder.get(folder));
        let single = files.and_then(|files| files.single.get(&stem(recording)));
        if let (Some(file), false) = (single, texts.contains_key(recording)) {
            texts.insert(recording.to_owned(), read_text(file)?);
        }
    }
    for (folder, files) in &found {
        for file in &files.prompts {
            formats::prompts(file, recordings, &mut texts)?;
        }
        for file in &files.sphinx {
            formats::sphinx(file, folder, recordings, &mut texts)?;
        }
    }
    formats::dialogs(root, recordings, &mut texts)?;
    Ok(texts)
}

/// The classes of `recordings`: from tables, else the name of the folder that each one is in.
///
/// # Errors
/// If a table cannot be read.
pub(crate) fn classes(path: &Path, root: &Path, recordings: &[&Path]) -> Result<Labels> {
    let mut classes = Labels::new();
    if path.extension() == Some(OsStr::new("tsv")) && table_kind(path)? == Some(Table::Label) {
        formats::table(path, root, &mut classes)?;
        return Ok(classes);
    }
    tables(&look_around(root, recordings)?, Table::Label, root, &mut classes)?;
    if classes.is_empty() {
        let class =
            |&recording: &&Path| Some((recording.to_owned(), folder(&root.join(recording))?));
        classes.extend(recordings.iter().filter_map(class));
    }
    Ok(classes)
}

/// The name of the folder that a recording is in.
pub(crate) fn folder(recording: &Path) -> Option<String> {
    let name = recording.parent()?.file_name()?;
    Some(name.to_string_lossy().into_owned())
}

/// What is told in the folders of `recordings`, and in those above up to `root`.
fn look_around<'a>(root: &Path, recordings: &[&'a Path]) -> Result<Vec<(&'a Path, Found)>> {
    // A recording that is not below the root has only its own folder.
    let levels = |file: &Path| if file.is_absolute() { 1 } else { usize::MAX };
    let above = |file: &&'a Path| file.ancestors().skip(1).take(levels(file));
    let folders: BTreeSet<&Path> = recordings.iter().flat_map(above).collect();
    folders.into_iter().map(|folder| Ok((folder, look(&root.join(folder))?))).collect()
}

fn tables(found: &[(&Path, Found)], kind: Table, root: &Path, labels: &mut Labels) -> Result<()> {
    for (told, table) in found.iter().flat_map(|(_, files)| &files.tables) {
        if *told == kind {
            formats::table(table, root, labels)?;
        }
    }
    Ok(())
}

/// What tells labels in one folder.
fn look(folder: &Path) -> Result<Found> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| Error::io(folder, source))? {
        names.push(entry.map_err(|source| Error::io(folder, source))?.path());
    }
    names.sort();
    let mut found = Found::default();
    for path in names {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        if name.ends_with(".tsv") {
            found.tables.extend(table_kind(&path)?.map(|kind| (kind, path)));
        } else if name.ends_with(".trans.txt") {
            found.libri.push(path);
        } else if name.contains("-sounds-") && name.ends_with(".txt") {
            found.prompts.push(path);
        } else if name == "transcription" || name.ends_with(".transcription") {
            found.sphinx.push(path);
        } else if name.ends_with(".txt") || name.ends_with(".lab") {
            found.single.insert(stem(&path), path);
        }
    }
    Ok(found)
}

/// `NAME.wrd` or `NAME.ltr` beside the manifest `NAME.tsv`.
fn beside_manifest(manifest: &Path, texts: &mut Labels) -> Result<()> {
    for extension in ["wrd", "ltr"] {
        let path = manifest.with_extension(extension);
        if !path.is_file() {
            continue;
        }
        let (lines, labels) = (read_text(manifest)?, read_text(&path)?);
        let files: Vec<&str> = lines
            .lines()
            .skip(1)
            .filter(|line| !line.trim().is_empty())
            .filter_map(|line| line.split('\t').next())
            .collect();
        let labels: Vec<&str> = labels.lines().collect();
        if files.len() != labels.len() {
            let manifest = manifest.display();
            let reason = format!(
                "has {} lines for the {} recordings of {manifest}",
                labels.len(),
                files.len()
            );
            return Err(Error::file(path, reason));
        }
        for (file, label) in files.into_iter().zip(labels) {
            let text = if extension == "ltr" { formats::letters(label) } else { label.to_owned() };
            texts.insert(PathBuf::from(file), text);
        }
        return Ok(());
    }
    Ok(())
}

/// A file's name without extension.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
