//! Long text in pieces, cut where no token notices.

/// Text is encoded in pieces of about so many bytes: runs of white space that are much longer than
/// this exhaust the regular expression's memory, and what follows them would be lost.
pub(crate) const PIECE: usize = 1 << 16;
/// Training is quadratic in the length of a word, so that one of 100 kB would take many seconds: its
/// text is cut much finer. Words of more than 16 times this are no words.
pub(crate) const TRAINING_PIECE: usize = 64;

/// A text in pieces of about `size` bytes, at most 16 times that, cut before a single space between words where there is
/// one: there GPT-2's splitting begins a new word whatever came before.
pub(crate) fn pieces(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, left) = rest.split_at(cut(rest, size));
        rest = left;
        Some(piece)
    })
}

/// Where to cut `text` into pieces of about `size` bytes: at most 16 times that from its beginning.
pub(crate) fn cut(text: &str, size: usize) -> usize {
    let bytes = text.as_bytes();
    let last = (16 * size).min(bytes.len().saturating_sub(1));
    let visible = |at: usize| !bytes[at].is_ascii_whitespace() && bytes[at].is_ascii();
    let word = |at: &usize| visible(at - 1) && bytes[*at] == b' ' && visible(at + 1);
    if bytes.len() <= size {
        return bytes.len();
    }
    (size..last).find(word).unwrap_or_else(|| {
        let mut at = (16 * size).min(bytes.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    })
}
