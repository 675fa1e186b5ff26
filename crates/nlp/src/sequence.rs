//! Encodes one text, or a pair, as one sequence of tokens.

use std::thread;

use data2vec_core::Result;

use crate::tokenizer::Tokenizer;

/// Encodes all examples on all cores; returns the ids of each and true if it was truncated.
pub(crate) fn encode_all(
    tokenizer: &Tokenizer,
    examples: &[&[String]],
    max_tokens: usize,
) -> Result<Vec<(Vec<u32>, bool)>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let chunk = examples.len().div_ceil(threads).max(1);
    let encode_one = |texts: &&[String]| {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (ids, truncated) = encode(tokenizer, &texts, max_tokens)?;
        Ok((ids.into_iter().map(|id| id as u32).collect(), truncated))
    };
    let parts: Vec<Result<Vec<_>>> = thread::scope(|scope| {
        let work = |part: &'_ [&[String]]| part.iter().map(encode_one).collect();
        let parts = examples.chunks(chunk).map(|part| scope.spawn(move || work(part)));
        let join = |part: thread::ScopedJoinHandle<'_, _>| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        parts.collect::<Vec<_>>().into_iter().map(join).collect()
    });
    let mut all = Vec::with_capacity(examples.len());
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

/// Encodes a text as `<s> A </s>`, or a pair as `<s> A </s> </s> B </s>`; returns the ids and true
/// if they were truncated to `max_tokens`.
pub(crate) fn encode(
    tokenizer: &Tokenizer,
    texts: &[&str],
    max_tokens: usize,
) -> Result<(Vec<i64>, bool)> {
    let special = tokenizer.special();
    let mut parts: Vec<Vec<i64>> =
        texts.iter().map(|text| tokenizer.encode(text.trim())).collect::<Result<_>>()?;
    let room = max_tokens.saturating_sub(2 * parts.len());
    let truncated = match &mut parts[..] {
        [one] => truncate(one, room),
        [a, b] if a.len() + b.len() > room => {
            // The shorter text keeps up to half of the room.
            let shorter = a.len().min(b.len()).min(room / 2);
            let [of_a, of_b] = if a.len() <= b.len() {
                [shorter, room - shorter]
            } else {
                [room - shorter, shorter]
            };
            truncate(a, of_a) | truncate(b, of_b)
        }
        _ => false,
    };
    let mut ids = vec![special.bos];
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            ids.push(special.eos);
        }
        ids.extend(part);
        ids.push(special.eos);
    }
    Ok((ids, truncated))
}

/// Truncates `ids` to `len`; returns true if they were longer.
fn truncate(ids: &mut Vec<i64>, len: usize) -> bool {
    let truncated = ids.len() > len;
    ids.truncate(len);
    truncated
}
