//! Cuts long text into pieces without changing its tokens.

/// Approximate piece size for encoding, in bytes: much longer runs of white space exhaust the
/// memory of the regular expression, and the text after them would be lost.
pub(crate) const PIECE: usize = 1 << 16;
/// Approximate piece size for training, in bytes: training is quadratic in the length of a word, so
/// a word of 100 kB would take many seconds. Longer runs without a space are cut at 16 times this
/// size.
pub(crate) const TRAINING_PIECE: usize = 64;

/// Cuts a text into pieces of about `size` bytes, and at most 16 times that.
///
/// Cuts before a single space between words if there is one; GPT-2's pre-tokenizer starts a new
/// word there in any context.
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

/// Returns the length of the first piece of `text`, see [`pieces`].
pub(crate) fn cut(text: &str, size: usize) -> usize {
    let bytes = text.as_bytes();
    let last = (16 * size).min(bytes.len().saturating_sub(1));
    let is_visible = |at: usize| !bytes[at].is_ascii_whitespace() && bytes[at].is_ascii();
    let is_word_start = |at: &usize| is_visible(at - 1) && bytes[*at] == b' ' && is_visible(at + 1);
    if bytes.len() <= size {
        return bytes.len();
    }
    (size..last).find(is_word_start).unwrap_or_else(|| {
        let mut at = (16 * size).min(bytes.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    })
}
