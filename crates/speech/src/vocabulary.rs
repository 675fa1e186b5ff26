//! The symbols that texts are written in, and their numbers.

use std::{collections::BTreeMap, path::Path};

use data2vec_core::{Error, Result};

use crate::{
    ctc::{Labels, SPECIAL, UNKNOWN},
    text_file::read_text,
};

/// [`SPECIAL`], then all symbols of `texts` from the most to the least frequent; equally frequent ones
/// in the order of their code points.
pub(crate) fn of_texts<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    for symbol in texts.flat_map(str::chars).filter(|&symbol| symbol != ' ') {
        *counts.entry(symbol).or_default() += 1;
    }
    let mut symbols: Vec<(char, usize)> = counts.into_iter().collect();
    symbols.sort_by_key(|&(_, count)| std::cmp::Reverse(count)); // stable
    let symbols = symbols.into_iter().map(|(symbol, _)| symbol.to_string());
    SPECIAL.iter().map(|&name| name.to_owned()).chain(symbols).collect()
}

/// A vocabulary of Hugging Face (`vocab.json`: names and numbers) or fairseq (`dict.ltr.txt`: a symbol
/// and its frequency a line), the blank first.
pub(crate) fn read(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path)?;
    let names = if text.trim_start().starts_with('{') {
        let map: BTreeMap<String, usize> = serde_json::from_str(&text).map_err(|error| {
            Error::file(path, format!("is no map of symbols to numbers: {error}"))
        })?;
        let mut names: Vec<(usize, String)> =
            map.into_iter().map(|(name, number)| (number, name)).collect();
        names.sort();
        if let Some((place, (number, name))) =
            names.iter().enumerate().find(|&(place, &(number, _))| place != number)
        {
            let reason = format!("{name:?} has the number {number}, where {place} is the next one");
            return Err(Error::file(path, reason));
        }
        let modern = |(_, name): (usize, String)| match name.as_str() {
            "[PAD]" => SPECIAL[0].to_owned(),
            "[UNK]" => UNKNOWN.to_owned(),
            _ => name,
        };
        let mut names: Vec<String> = names.into_iter().map(modern).collect();
        let Some(blank) = names.iter().position(|name| name == SPECIAL[0]) else {
            return Err(Error::file(
                path,
                format!("has no {}, which the blank is called", SPECIAL[0]),
            ));
        };
        names[..=blank].rotate_right(1);
        names
    } else {
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
        names
    };
    match Labels::new(names) {
        Ok(labels) => Ok(labels.names().to_vec()),
        Err(Error::Config { reason, .. }) => Err(Error::file(path, reason)),
        Err(error) => Err(error),
    }
}

/// The numbers of a text's symbols, each word ended by a separator, as fairseq does; and how many of
/// them have none and count as `<unk>`, or as nothing where there is no such label.
pub(crate) fn encode(text: &str, labels: &Labels) -> (Vec<i64>, usize) {
    let (mut ids, mut strange) = (Vec::new(), 0);
    let unknown = labels.find(UNKNOWN);
    for word in text.split_whitespace() {
        for symbol in word.chars() {
            let known = labels.find(symbol.encode_utf8(&mut [0; 4]));
            strange += usize::from(known.is_none());
            ids.extend(known.or(unknown).map(|id| id as i64));
        }
        ids.extend(labels.separator().map(|id| id as i64));
    }
    (ids, strange)
}
