//! One text, or a pair, as the tokens of one sequence.

use std::thread;

use data2vec_core::Result;

use crate::{Tokenizer, tsv::Record};

/// Ids of all, and which of them were cut; by all cores.
pub(crate) fn sequences(
    records: &[Record],
    tokenizer: &Tokenizer,
    max_tokens: usize,
) -> Result<Vec<(Vec<u32>, bool)>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = records.len().div_ceil(threads).max(1);
    let encode = |record: &Record| {
        let texts: Vec<&str> = record.texts.iter().map(String::as_str).collect();
        let (ids, cut) = sequence(tokenizer, &texts, max_tokens)?;
        Ok((ids.into_iter().map(|id| id as u32).collect(), cut))
    };
    let parts: Vec<Result<Vec<_>>> = thread::scope(|scope| {
        let work = |part: &'_ [Record]| part.iter().map(encode).collect();
        let parts = records.chunks(share).map(|part| scope.spawn(move || work(part)));
        let join = |part: thread::ScopedJoinHandle<'_, _>| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        parts.collect::<Vec<_>>().into_iter().map(join).collect()
    });
    let mut all = Vec::with_capacity(records.len());
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

/// `<s> A </s>`, or of a pair `<s> A </s> </s> B </s>`, and whether it was cut to `max_tokens`.
pub(crate) fn sequence(
    tokenizer: &Tokenizer,
    texts: &[&str],
    max_tokens: usize,
) -> Result<(Vec<i64>, bool)> {
    let special = tokenizer.special();
    let mut parts: Vec<Vec<i64>> =
        texts.iter().map(|text| tokenizer.encode(text.trim())).collect::<Result<_>>()?;
    let room = max_tokens.saturating_sub(2 * parts.len());
    let cut = match &mut parts[..] {
        [one] => cut_to(one, room),
        [a, b] if a.len() + b.len() > room => {
            // The shorter one keeps what it has, up to half.
            let shorter = a.len().min(b.len()).min(room / 2);
            let [of_a, of_b] = if a.len() <= b.len() {
                [shorter, room - shorter]
            } else {
                [room - shorter, shorter]
            };
            cut_to(a, of_a) | cut_to(b, of_b)
        }
        _ => false,
    };
    let mut ids = vec![special.begin];
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            ids.push(special.end);
        }
        ids.extend(part);
        ids.push(special.end);
    }
    Ok((ids, cut))
}

fn cut_to(ids: &mut Vec<i64>, room: usize) -> bool {
    let cut = ids.len() > room;
    ids.truncate(room);
    cut
}
