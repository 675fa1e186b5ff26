//! Finds the transcripts and classes of recordings in files beside them.
//!
//! | source | content |
//! |---|---|
//! | fairseq manifest `NAME.tsv` | `NAME.wrd`, or `NAME.ltr` (`H E L L O \| W O R L D \|`), line by line |
//! | any `.tsv` whose first line is `path<TAB>text` or `path<TAB>label` | paths relative to the table |
//! | `*.trans.txt` (LibriSpeech) | lines `NAME TEXT` for the recordings in its directory |
//! | `NAME.txt` or `NAME.lab` beside `NAME.wav` | the text |
//!
//! If a recording has several transcripts, the source further up in this table wins. `cargo xtask data`
//! converts other layouts of the catalog's data sets to a table.

mod formats;
mod text;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::{Error, Result};

pub use text::{Case, normalize};

use crate::listing::{Table, table_kind};
use crate::text_file::read_text;

/// Sources of transcripts that [`texts`] looks for, for error messages.
pub(crate) const LOOKED_FOR: &str = "NAME.ltr or NAME.wrd beside a manifest, tables `path<TAB>text` (.tsv), \
                                     *.trans.txt, NAME.txt or NAME.lab beside NAME.wav";

/// Labels of recordings by path relative to their root.
pub(crate) type Labels = HashMap<PathBuf, String>;

/// Label files of one directory, by format.
#[derive(Default)]
struct LabelFiles {
    tables: Vec<(Table, PathBuf)>,
    libri: Vec<PathBuf>,
    /// Files with the text of one recording, by stem.
    single: HashMap<String, PathBuf>,
}

/// Returns the transcripts of `recordings` (paths relative to `root`), which were listed from `path`.
///
/// # Errors
/// If a transcript file cannot be read, or does not match the recordings.
pub(crate) fn texts(path: &Path, root: &Path, recordings: &[&Path]) -> Result<Labels> {
    let mut texts = Labels::new();
    if path.extension() == Some(OsStr::new("tsv")) {
        match table_kind(path)? {
            Some(Table::Text) => formats::table(path, root, &mut texts)?,
            Some(Table::Label) => {}
            None => beside_manifest(path, &mut texts)?,
        }
    }
    let directories = find_label_files(root, recordings)?;
    read_tables(&directories, Table::Text, root, &mut texts)?;
    for (directory, files) in &directories {
        for file in &files.libri {
            formats::libri(file, directory, recordings, &mut texts)?;
        }
    }
    let by_directory: HashMap<&Path, &LabelFiles> =
        directories.iter().map(|(directory, files)| (*directory, files)).collect();
    for &recording in recordings {
        let files = recording.parent().and_then(|directory| by_directory.get(directory));
        let single = files.and_then(|files| files.single.get(&stem(recording)));
        if let (Some(file), false) = (single, texts.contains_key(recording)) {
            texts.insert(recording.to_owned(), read_text(file)?);
        }
    }
    Ok(texts)
}

/// Returns the classes of `recordings`: from tables, else the name of each recording's directory.
///
/// # Errors
/// If a table cannot be read.
pub(crate) fn classes(path: &Path, root: &Path, recordings: &[&Path]) -> Result<Labels> {
    let mut classes = Labels::new();
    if path.extension() == Some(OsStr::new("tsv")) && table_kind(path)? == Some(Table::Label) {
        formats::table(path, root, &mut classes)?;
        return Ok(classes);
    }
    read_tables(&find_label_files(root, recordings)?, Table::Label, root, &mut classes)?;
    if classes.is_empty() {
        let class =
            |&recording: &&Path| Some((recording.to_owned(), folder(&root.join(recording))?));
        classes.extend(recordings.iter().filter_map(class));
    }
    Ok(classes)
}

/// Returns the name of a recording's directory.
pub(crate) fn folder(recording: &Path) -> Option<String> {
    let name = recording.parent()?.file_name()?;
    Some(name.to_string_lossy().into_owned())
}

/// Lists the label files in the directories of `recordings` and their ancestors up to `root`.
fn find_label_files<'a>(
    root: &Path,
    recordings: &[&'a Path],
) -> Result<Vec<(&'a Path, LabelFiles)>> {
    // An absolute path is not below the root: only its own directory is searched.
    let levels = |file: &Path| if file.is_absolute() { 1 } else { usize::MAX };
    let ancestors = |file: &&'a Path| file.ancestors().skip(1).take(levels(file));
    let directories: BTreeSet<&Path> = recordings.iter().flat_map(ancestors).collect();
    let list = |directory| Ok((directory, list_label_files(&root.join(directory))?));
    directories.into_iter().map(list).collect()
}

/// Reads all tables of one kind.
fn read_tables(
    directories: &[(&Path, LabelFiles)],
    kind: Table,
    root: &Path,
    labels: &mut Labels,
) -> Result<()> {
    for (found, table) in directories.iter().flat_map(|(_, files)| &files.tables) {
        if *found == kind {
            formats::table(table, root, labels)?;
        }
    }
    Ok(())
}

/// Lists the label files in one directory, sorted by name. Hidden files are skipped.
fn list_label_files(directory: &Path) -> Result<LabelFiles> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(|source| Error::io(directory, source))? {
        paths.push(entry.map_err(|source| Error::io(directory, source))?.path());
    }
    paths.sort();
    let mut files = LabelFiles::default();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        if name.ends_with(".tsv") {
            files.tables.extend(table_kind(&path)?.map(|kind| (kind, path)));
        } else if name.ends_with(".trans.txt") {
            files.libri.push(path);
        } else if name.ends_with(".txt") || name.ends_with(".lab") {
            files.single.insert(stem(&path), path);
        }
    }
    Ok(files)
}

/// Reads `NAME.wrd` or `NAME.ltr` beside the manifest `NAME.tsv`.
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

/// Returns the file name without its extension.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
