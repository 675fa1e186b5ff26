//! Converts corpus-specific transcripts to a table that the speech crate reads.
//!
//! A data set whose catalog entry has `transcripts = "LAYOUT"` gets a `transcripts.tsv` when it is
//! fetched: the header `path<TAB>text`, then one recording per line, sorted by path. Recordings
//! without spoken words are left out. The original files stay beside it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::files;

/// Name of the table in the data set's directory.
pub const TABLE: &str = "transcripts.tsv";

/// Formats of recordings in the data sets of the catalog.
const AUDIO: [&str; 3] = [".wav", ".ogg", ".flac"];

/// Transcripts by path of the recording, relative to the data set, before whitespace is normalised.
type Transcripts = BTreeMap<String, String>;

/// A corpus-specific layout of transcripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `*-sounds-*.txt`: lines `KEY: text`, where `KEY` ends the recording's path without
    /// extension.
    Asterisk,
    /// `*.transcription`: lines `text (NAME)` for the recordings in the same directory.
    Sphinx,
    /// `script/LEVEL/*dialogs_LANGUAGE.lua` for `sound/LEVEL/LANGUAGE/NAME.ogg`.
    Fillets,
}

/// Writes [`TABLE`] into the data set at `dir`.
///
/// # Errors
/// If the table exists, a transcript file is not UTF-8, or no recording has a transcript.
pub fn write_table(layout: Layout, dir: &Path) -> Result<()> {
    let files = files::list(dir)?;
    let is_audio = |path: &&str| AUDIO.iter().any(|extension| path.ends_with(extension));
    let recordings: Vec<&str> = files.iter().map(String::as_str).filter(is_audio).collect();
    let transcripts = match layout {
        Layout::Asterisk => asterisk(dir, &files, &recordings),
        Layout::Sphinx => sphinx(dir, &files, &recordings),
        Layout::Fillets => fillets(dir, &files, &recordings),
    }
    .with_context(|| format!("cannot convert the {layout:?} transcripts"))?;
    let mut table = String::from("path\ttext\n");
    for (path, text) in &transcripts {
        ensure!(!path.contains(['\t', '\n']), "{path:?} contains a tab or line break");
        let words: Vec<&str> = text.split_whitespace().collect();
        if !words.is_empty() {
            table += &format!("{path}\t{}\n", words.join(" "));
        }
    }
    ensure!(table.lines().count() > 1, "no recording has a transcript in the {layout:?} layout");
    let path = dir.join(TABLE);
    File::create_new(&path)
        .and_then(|mut file| file.write_all(table.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads the lines `KEY: text` of Asterisk's prompt lists. `;` starts a comment line.
fn asterisk(dir: &Path, files: &[String], recordings: &[&str]) -> Result<Transcripts> {
    let mut transcripts = Transcripts::new();
    let is_list = |name: &str| name.contains("-sounds-") && name.ends_with(".txt");
    for list in files.iter().filter(|path| is_list(file_name(path))) {
        let text = read_text(&dir.join(list))?;
        let lines = text.lines().filter(|line| !line.starts_with(';'));
        let by_key: HashMap<&str, &str> = lines.filter_map(|line| line.split_once(':')).collect();
        for &recording in recordings {
            let key = recording.rsplit_once('.').map_or(recording, |(key, _)| key);
            // The same key names a recording in the directory of each language.
            let suffixes = std::iter::successors(Some(key), |key| Some(key.split_once('/')?.1));
            let text = suffixes.into_iter().find_map(|key| by_key.get(key));
            if let Some(spoken) = text.and_then(|text| spoken_words(text)) {
                transcripts.entry(recording.to_owned()).or_insert(spoken);
            }
        }
    }
    Ok(transcripts)
}

/// Removes bracketed notes from a prompt. A prompt that starts with a note describes a sound:
/// `None`.
fn spoken_words(text: &str) -> Option<String> {
    if text.trim_start().starts_with(['[', '(', '<']) {
        return None;
    }
    let mut depth = 0_usize;
    let mut spoken = String::new();
    for letter in text.chars() {
        match letter {
            '[' | '(' | '<' => depth += 1,
            ']' | ')' | '>' => depth = depth.saturating_sub(1),
            _ if depth == 0 => spoken.push(letter),
            _ => {}
        }
    }
    Some(spoken)
}

/// Reads the lines `text (NAME)` of CMU Sphinx, the text optionally between `<s>` and `</s>`.
fn sphinx(dir: &Path, files: &[String], recordings: &[&str]) -> Result<Transcripts> {
    let mut transcripts = Transcripts::new();
    let is_list = |name: &str| name == "transcription" || name.ends_with(".transcription");
    for list in files.iter().filter(|path| is_list(file_name(path))) {
        let text = read_text(&dir.join(list))?;
        let parse = |line: &'_ str| {
            let (text, name) = line.trim_end().strip_suffix(')')?.rsplit_once('(')?;
            Some((name.to_owned(), text.replace("<s>", " ").replace("</s>", " ")))
        };
        let by_name: HashMap<String, String> = text.lines().filter_map(parse).collect();
        for &recording in recordings {
            if directory(recording) == directory(list)
                && let Some(text) = by_name.get(stem(recording))
            {
                transcripts.entry(recording.to_owned()).or_insert_with(|| text.clone());
            }
        }
    }
    Ok(transcripts)
}

/// Reads the dialogues of the game Fish Fillets: `dialogId("NAME", …)`, then `dialogStr("TEXT")`.
/// Some recordings of a level have their text in the script of another level.
fn fillets(dir: &Path, files: &[String], recordings: &[&str]) -> Result<Transcripts> {
    let mut by_level: HashMap<(String, String), String> = HashMap::new();
    let mut by_name: HashMap<String, String> = HashMap::new();
    let mut scripts: Vec<(&str, &str)> = Vec::new();
    for path in files {
        if let Some((level, name)) = path.strip_prefix("script/").and_then(|p| p.split_once('/'))
            && name.contains("dialogs_")
            && name.ends_with(".lua")
            && !name.contains('/')
        {
            scripts.push((level, path));
        }
    }
    // The first level wins where several have the same name.
    scripts.sort_unstable();
    for (level, path) in scripts {
        let mut last_id = None;
        for line in read_text(&dir.join(path))?.lines() {
            // A text counts only on the line after its ID: calls that span lines are skipped.
            let id = last_id.take();
            if let Some(id) = first_argument(line, "dialogId(") {
                last_id = Some(id);
            } else if let (Some(text), Some(id)) = (first_argument(line, "dialogStr("), id) {
                by_name.entry(id.clone()).or_insert_with(|| text.clone());
                by_level.entry((level.to_owned(), id)).or_insert(text);
            }
        }
    }
    let mut transcripts = Transcripts::new();
    for &recording in recordings {
        let id = stem(recording).to_owned();
        let level = recording.split('/').nth(1).unwrap_or_default().to_owned();
        let text = by_name.get(&id);
        if let Some(text) = by_level.get(&(level, id)).or(text) {
            transcripts.insert(recording.to_owned(), text.clone());
        }
    }
    Ok(transcripts)
}

/// Parses the first string literal that a line of Lua passes to `function`, given as `NAME(`.
fn first_argument(line: &str, function: &str) -> Option<String> {
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

/// Reads a UTF-8 file without its byte order mark.
fn read_text(path: &Path) -> Result<String> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_owned))
}

fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Returns the file name without its extension.
fn stem(path: &str) -> &str {
    let name = file_name(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Converts a data set of these recordings (empty files) and text files; returns the table.
    fn convert(layout: Layout, recordings: &[&str], texts: &[(&str, &str)]) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let empty = recordings.iter().map(|&path| (path, ""));
        for (path, text) in empty.chain(texts.iter().copied()) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        write_table(layout, dir.path())?;
        Ok(fs::read_to_string(dir.path().join(TABLE)).unwrap())
    }

    #[test]
    fn converts_asterisk_prompts() {
        let recordings = [
            "en/activated.wav",
            "en/letters/at.wav",
            "en/beep.wav",
            "en/silence/1.wav",
            "en/x.wav",
        ];
        let prompts = "\u{feff}; Core: sounds\n\nactivated: It's  \"Activated\".\nletters/at: at [@]\n\
                       beep: [a beep]\nsilence/1: (a second)\nx: <beep>\n";
        let table = convert(Layout::Asterisk, &recordings, &[("core-sounds-en.txt", prompts)]);
        assert_eq!(
            table.unwrap(),
            "path\ttext\nen/activated.wav\tIt's \"Activated\".\nen/letters/at.wav\tat\n"
        );
    }

    #[test]
    fn converts_sphinx_transcriptions() {
        let table = convert(
            Layout::Sphinx,
            &["a/001.wav", "a/002.wav", "b/001.wav"],
            &[("a/cards.transcription", "<s> ten of clubs  </s> (001)\n<s> </s> (002)\n")],
        );
        assert_eq!(table.unwrap(), "path\ttext\na/001.wav\tten of clubs\n");
    }

    #[test]
    fn converts_fillets_dialogues() {
        let recordings =
            ["sound/reef/nl/r-1.ogg", "sound/reef/nl/s-1.ogg", "sound/share/border/nl/b.ogg"];
        let reef = "\ndialogId(\"r-1\", \"font_small\", \"A \\\"ship\\\"?\")\n\
                    dialogStr(\"Een \\\"schip\\\"?\")\n";
        let table = convert(
            Layout::Fillets,
            &recordings,
            &[
                ("script/reef/dialogs_nl.lua", reef),
                ("script/other/dialogs_nl.lua", "dialogId(\"r-1\")\ndialogStr(\"no\")\n"),
                (
                    "script/share/border_dialogs_nl.lua",
                    "dialogId(\"b\")\ndialogStr(\"Ja\\nja.\")\n",
                ),
            ],
        );
        assert_eq!(
            table.unwrap(),
            "path\ttext\nsound/reef/nl/r-1.ogg\tEen \"schip\"?\nsound/share/border/nl/b.ogg\tJa ja.\n"
        );
    }

    #[test]
    fn rejects_data_without_transcripts() {
        let error = convert(Layout::Sphinx, &["a.wav"], &[("b.transcription", "(b)\n")]);
        assert!(error.unwrap_err().to_string().contains("no recording has a transcript"));
    }

    #[test]
    fn does_not_overwrite_a_table() {
        let texts = [("a.transcription", "yes (a)\n"), (TABLE, "path\ttext\n")];
        let error = convert(Layout::Sphinx, &["a.wav"], &texts).unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error:#}");
    }
}
