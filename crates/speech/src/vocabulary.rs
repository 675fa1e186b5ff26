//! Vocabularies of transcripts: built, read from files, applied.

use std::collections::BTreeMap;
use std::path::Path;

use data2vec_core::{Error, Result};

use crate::ctc::{Labels, SPECIAL, UNKNOWN};
use crate::text_file::read_text;

/// Returns [`SPECIAL`], then all symbols of `texts` from most to least frequent; ties are in
/// code point order.
pub(crate) fn from_texts<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    for symbol in texts.flat_map(str::chars).filter(|&symbol| symbol != ' ') {
        *counts.entry(symbol).or_default() += 1;
    }
    let mut symbols: Vec<(char, usize)> = counts.into_iter().collect();
    symbols.sort_by_key(|&(_, count)| std::cmp::Reverse(count)); // stable
    let symbols = symbols.into_iter().map(|(symbol, _)| symbol.to_string());
    SPECIAL.iter().map(|&name| name.to_owned()).chain(symbols).collect()
}

/// Reads a vocabulary of Hugging Face (`vocab.json`: names and ids) or fairseq (`dict.ltr.txt`: a
/// symbol and its count per line) and returns its labels, the blank first.
pub(crate) fn read(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path)?;
    let names = match text.trim_start().starts_with('{') {
        true => parse_json(path, &text)?,
        false => parse_dictionary(path, &text)?,
    };
    match Labels::new(names) {
        Ok(labels) => Ok(labels.names().to_vec()),
        Err(Error::Config { reason, .. }) => Err(Error::file(path, reason)),
        Err(error) => Err(error),
    }
}

fn parse_json(path: &Path, text: &str) -> Result<Vec<String>> {
    let map: BTreeMap<String, usize> = serde_json::from_str(text)
        .map_err(|error| Error::file(path, format!("is not a map from symbols to ids: {error}")))?;
    let mut names: Vec<(usize, String)> = map.into_iter().map(|(name, id)| (id, name)).collect();
    names.sort();
    if let Some((next, (id, name))) = names.iter().enumerate().find(|&(next, &(id, _))| next != id)
    {
        let reason = format!("{name:?} has id {id}, but the next id is {next}");
        return Err(Error::file(path, reason));
    }
    let current = |(_, name): (usize, String)| match name.as_str() {
        "[PAD]" => SPECIAL[0].to_owned(),
        "[UNK]" => UNKNOWN.to_owned(),
        _ => name,
    };
    let mut names: Vec<String> = names.into_iter().map(current).collect();
    let Some(blank) = names.iter().position(|name| name == SPECIAL[0]) else {
        return Err(Error::file(path, format!("has no {}, the name of the blank", SPECIAL[0])));
    };
    names[..=blank].rotate_right(1);
    Ok(names)
}

fn parse_dictionary(path: &Path, text: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = SPECIAL[..4].iter().map(|&name| name.to_owned()).collect();
    for (number, line) in (1..).zip(text.lines()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [] => {}
            [symbol] | [symbol, _] => names.push(symbol.to_owned()),
            _ => {
                let shown: String = line.chars().take(80).collect();
                let reason = format!("line {number}: must be `SYMBOL COUNT`, not {shown:?}");
                return Err(Error::file(path, reason));
            }
        }
    }
    Ok(names)
}

/// Encodes a text as label ids, with a separator after each word, as fairseq does. Returns the ids
/// and the number of symbols that are no label; these are encoded as `<unk>`, or dropped without
/// such a label.
pub(crate) fn encode(text: &str, labels: &Labels) -> (Vec<i64>, usize) {
    let (mut ids, mut unknown_symbols) = (Vec::new(), 0);
    let unknown = labels.find(UNKNOWN);
    for word in text.split_whitespace() {
        for symbol in word.chars() {
            let known = labels.find(symbol.encode_utf8(&mut [0; 4]));
            unknown_symbols += usize::from(known.is_none());
            ids.extend(known.or(unknown).map(|id| id as i64));
        }
        ids.extend(labels.separator().map(|id| id as i64));
    }
    (ids, unknown_symbols)
}
