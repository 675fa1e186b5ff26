//! Reads fairseq's dictionaries.

use std::path::Path;

use data2vec_core::{Error, Result};

/// Parses fairseq's `dict.txt`, with `ID COUNT` on each line: returns the GPT-2 id of each line,
/// below `size`, or `None` for a filler word.
pub(crate) fn dictionary_ids(path: &Path, bytes: &[u8], size: usize) -> Result<Vec<Option<u32>>> {
    let text = String::from_utf8_lossy(bytes);
    let mut ids = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let Some((token, count)) = line.trim_end().rsplit_once(' ') else {
            let reason = format!("line {number}: must be `ID COUNT`, not {line:?}");
            return Err(Error::file(path, reason));
        };
        if count.parse::<u64>().is_err() {
            return Err(Error::file(path, format!("line {number}: {count:?} is not a count")));
        }
        match token.parse::<u32>() {
            Ok(id) if (id as usize) < size => ids.push(Some(id)),
            Ok(id) => {
                let reason = format!("line {number}: {id} is outside a vocabulary of {size}");
                return Err(Error::file(path, reason));
            }
            Err(_) => ids.push(None),
        }
    }
    Ok(ids)
}
