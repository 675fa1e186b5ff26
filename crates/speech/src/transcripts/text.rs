//! Normalises the text of transcripts.

use serde::{Deserialize, Serialize};
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

/// Conversion of upper and lower case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Case {
    /// Converts to upper case, as in LibriSpeech and the released models.
    #[default]
    Upper,
    /// Converts to lower case.
    Lower,
    /// Keeps the case.
    Keep,
}

/// Normalises a transcript to words separated by single spaces.
///
/// Words consist of letters and digits of any script and of apostrophes inside words; everything else
/// separates words. Characters are composed (NFC).
///
/// ```
/// use data2vec_speech::{Case, normalize_text};
///
/// assert_eq!(normalize_text("  It’s 5 o'clock -- 'now'!", Case::Upper), "IT'S 5 O'CLOCK NOW");
/// assert_eq!(normalize_text("Příliš žluťoučký kůň.", Case::Lower), "příliš žluťoučký kůň");
/// ```
pub fn normalize(text: &str, case: Case) -> String {
    let cased = match case {
        Case::Upper => text.to_uppercase(),
        Case::Lower => text.to_lowercase(),
        Case::Keep => text.to_owned(),
    };
    let letters: Vec<char> = cased.nfc().collect();
    let apostrophe = |letter: char| ['\'', '\u{2019}', '\u{2bc}'].contains(&letter);
    let spoken = |letter: char| {
        !apostrophe(letter) && (letter.is_alphanumeric() || is_combining_mark(letter))
    };
    let mut words = String::with_capacity(cased.len());
    for (at, &letter) in letters.iter().enumerate() {
        let around = || {
            let before = at > 0 && spoken(letters[at - 1]);
            before && letters.get(at + 1).is_some_and(|&next| spoken(next))
        };
        match letter {
            letter if spoken(letter) => words.push(letter),
            letter if apostrophe(letter) && around() => words.push('\''),
            _ if words.is_empty() || words.ends_with(' ') => {}
            _ => words.push(' '),
        }
    }
    if words.ends_with(' ') {
        words.pop();
    }
    words
}
