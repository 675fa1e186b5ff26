//! Ways to write transcripts.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use data2vec_core::{Error, Result};

use super::{Labels, stem};
use crate::text_file::read_text;

/// `path<TAB>text`, below a line that says so; the paths are relative to the table.
pub(super) fn table(path: &Path, root: &Path, texts: &mut Labels) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let below = folder.strip_prefix(root).unwrap_or(folder);
    for (number, line) in (1..).zip(read_text(path)?.lines()).skip(1) {
        if line.trim().is_empty() {
            continue;
        }
        let Some((file, text)) = line.split_once('\t') else {
            let shown: String = line.chars().take(80).collect();
            let reason = format!("line {number}: must be `path<TAB>text`, not {shown:?}");
            return Err(Error::file(path, reason));
        };
        texts.entry(below.join(file.trim_start_matches("./"))).or_insert_with(|| text.to_owned());
    }
    Ok(())
}

/// fairseq's letters, `H E L L O | W O R L D |`, as words.
pub(super) fn letters(line: &str) -> String {
    line.split_whitespace().map(|letter| if letter == "|" { " " } else { letter }).collect()
}

/// LibriSpeech: `NAME TEXT`.
pub(super) fn libri(
    path: &Path,
    folder: &Path,
    recordings: &[&Path],
    texts: &mut Labels,
) -> Result<()> {
    let text = read_text(path)?;
    let by_name = text.lines().filter_map(|line| line.split_once(char::is_whitespace)).collect();
    in_folder(&by_name, folder, recordings, texts);
    Ok(())
}

/// Sphinx: `text (NAME)`, the text maybe between `<s>` and `</s>`.
pub(super) fn sphinx(
    path: &Path,
    folder: &Path,
    recordings: &[&Path],
    texts: &mut Labels,
) -> Result<()> {
    let text = read_text(path)?;
    let entry = |line: &str| {
        let (text, name) = line.trim_end().strip_suffix(')')?.rsplit_once('(')?;
        Some((name.to_owned(), text.replace("<s>", " ").replace("</s>", " ")))
    };
    let by_name: HashMap<String, String> = text.lines().filter_map(entry).collect();
    let by_name = by_name.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    in_folder(&by_name, folder, recordings, texts);
    Ok(())
}

/// Gives the recordings of one folder the texts that stand beside their names.
fn in_folder(
    by_name: &HashMap<&str, &str>,
    folder: &Path,
    recordings: &[&Path],
    texts: &mut Labels,
) {
    for &recording in recordings.iter().filter(|file| file.parent() == Some(folder)) {
        if let Some(text) = by_name.get(stem(recording).as_str()) {
            texts.entry(recording.to_owned()).or_insert_with(|| (*text).to_owned());
        }
    }
}

/// Asterisk: `KEY: text` with `;` before comments. What stands in brackets is not spoken.
pub(super) fn prompts(path: &Path, recordings: &[&Path], texts: &mut Labels) -> Result<()> {
    let text = read_text(path)?;
    let lines = text.lines().filter(|line| !line.starts_with(';'));
    let by_key: HashMap<&str, &str> = lines.filter_map(|line| line.split_once(':')).collect();
    for &recording in recordings {
        let key = recording.with_extension("");
        // A key names a recording in each language's folder.
        let mut rest = key.components();
        let text = loop {
            let key = rest.as_path().to_string_lossy().replace('\\', "/");
            match by_key.get(key.as_str()) {
                Some(text) => break Some(text),
                None => {
                    if rest.next().is_none() {
                        break None;
                    }
                }
            }
        };
        let spoken = text.map(|text| without_brackets(text));
        if let Some(spoken) = spoken.filter(|spoken| !spoken.trim().is_empty()) {
            texts.entry(recording.to_owned()).or_insert(spoken);
        }
    }
    Ok(())
}

/// Nothing if the text begins with a bracket: then all of it tells what is heard.
fn without_brackets(text: &str) -> String {
    if text.trim_start().starts_with(['[', '(', '<']) {
        return String::new();
    }
    let mut depth = 0_usize;
    let spoken = text.chars().filter(|&letter| match letter {
        '[' | '(' | '<' => {
            depth += 1;
            false
        }
        ']' | ')' | '>' => {
            depth = depth.saturating_sub(1);
            false
        }
        _ => depth == 0,
    });
    spoken.collect()
}

/// Fish Fillets: `dialogId("NAME", "font_SPEAKER", "English")` and then `dialogStr("TEXT")`, for
/// `sound/LEVEL/LANGUAGE/NAME.ogg`. Some levels say what belongs to another one.
pub(super) fn dialogs(root: &Path, recordings: &[&Path], texts: &mut Labels) -> Result<()> {
    let scripts = root.join("script");
    if !scripts.is_dir() {
        return Ok(());
    }
    let mut by_level: HashMap<(String, String), String> = HashMap::new();
    let mut by_name: HashMap<String, String> = HashMap::new();
    for level in sorted(&scripts)? {
        for file in if level.is_dir() { sorted(&level)? } else { Vec::new() } {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !(name.contains("dialogs_") && name.ends_with(".lua")) {
                continue;
            }
            let level = stem(&level);
            let mut last = None;
            for line in read_text(&file)?.lines() {
                if let Some(id) = argument(line, "dialogId(") {
                    last = Some(id);
                } else if let (Some(text), Some(id)) = (argument(line, "dialogStr("), last.take()) {
                    by_name.entry(id.clone()).or_insert_with(|| text.clone());
                    by_level.entry((level.clone(), id)).or_insert(text);
                }
            }
        }
    }
    for &recording in recordings {
        let level: Vec<String> =
            recording.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let id = stem(recording);
        let own = level.get(1).and_then(|level| by_level.get(&(level.clone(), id.clone())));
        if let Some(text) = own.or_else(|| by_name.get(&id)) {
            texts.entry(recording.to_owned()).or_insert_with(|| text.clone());
        }
    }
    Ok(())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()
    });
    let mut paths = entries.map_err(|source| Error::io(folder, source))?;
    paths.sort();
    Ok(paths)
}

/// The first string that a line passes to `function`.
fn argument(line: &str, function: &str) -> Option<String> {
    let mut rest = line.trim().strip_prefix(function)?.trim_start().strip_prefix('"')?.chars();
    let mut text = String::new();
    loop {
        match rest.next()? {
            '"' => return Some(text),
            '\\' => match rest.next()? {
                'n' => text.push(' '),
                letter => text.push(letter),
            },
            letter => text.push(letter),
        }
    }
}
