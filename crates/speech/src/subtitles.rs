//! Subtitles from transcripts: SubRip (`.srt`) and WebVTT (`.vtt`).

use std::fmt::Write;

use crate::recognizer::Transcript;

/// Limits of a subtitle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SubtitleConfig {
    /// Maximum duration in seconds; a single word may take longer.
    pub max_seconds: f64,
    /// Maximum number of characters; a single word may have more.
    pub max_characters: usize,
    /// Pause in seconds that ends a subtitle.
    pub max_pause: f64,
}

impl Default for SubtitleConfig {
    fn default() -> Self {
        Self { max_seconds: 6.0, max_characters: 42, max_pause: 1.0 }
    }
}

/// A subtitle with its times in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Cue {
    /// The text.
    pub text: String,
    /// Start of the first word.
    pub start: f64,
    /// End of the last word.
    pub end: f64,
}

/// Groups the words of a transcript into subtitles that do not overlap. Words are joined by spaces if
/// the transcript has any.
pub fn cues(transcript: &Transcript, config: &SubtitleConfig) -> Vec<Cue> {
    let space = if transcript.text.contains(' ') { " " } else { "" };
    let mut cues: Vec<Cue> = Vec::new();
    for word in &transcript.words {
        let (start, end) = (f64::from(word.start), f64::from(word.end));
        let open = cues.last_mut().filter(|cue| {
            let characters = cue.text.chars().count() + space.len() + word.text.chars().count();
            characters <= config.max_characters
                && end - cue.start <= config.max_seconds
                && start - cue.end < config.max_pause
        });
        match open {
            Some(cue) => {
                cue.text.push_str(space);
                cue.text.push_str(&word.text);
                cue.end = end;
            }
            None => cues.push(Cue { text: word.text.clone(), start, end }),
        }
    }
    cues
}

/// Formats subtitles as a `.srt` file.
pub fn srt(cues: &[Cue]) -> String {
    let mut text = String::new();
    for (number, cue) in (1..).zip(cues) {
        let (start, end) = (timestamp(cue.start, ','), timestamp(cue.end, ','));
        // Writing to a string cannot fail.
        let _ = write!(text, "{number}\n{start} --> {end}\n{}\n\n", cue.text);
    }
    text
}

/// Formats subtitles as a `.vtt` file.
pub fn vtt(cues: &[Cue]) -> String {
    let mut text = String::from("WEBVTT\n\n");
    for cue in cues {
        let (start, end) = (timestamp(cue.start, '.'), timestamp(cue.end, '.'));
        let shown = cue.text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = write!(text, "{start} --> {end}\n{shown}\n\n");
    }
    text
}

/// Formats a time, e.g. `01:02:03,004`.
fn timestamp(seconds: f64, point: char) -> String {
    let ms = (seconds * 1000.0).round().max(0.0) as u64;
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}{point}{:03}", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognizer::Word;

    fn word(text: &str, start: f32, end: f32) -> Word {
        Word { text: text.into(), start, end, score: 1.0 }
    }

    fn transcript(words: &[Word], space: &str) -> Transcript {
        let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        Transcript { text: texts.join(space), words: words.to_vec() }
    }

    #[test]
    fn cues_end_at_pauses_and_limits() {
        let words = [
            word("SO", 0.5, 0.75),
            word("IT", 0.75, 1.0),
            word("BEGINS", 2.5, 3.0), // after a pause
            word("AND", 3.0, 3.25),
            word("GOES", 3.25, 3.5),
            word("ON", 3602.0, 3602.5),
        ];
        let config = SubtitleConfig { max_characters: 10, ..SubtitleConfig::default() };
        let cues = cues(&transcript(&words, " "), &config);
        let shown: Vec<&str> = cues.iter().map(|cue| cue.text.as_str()).collect();
        assert_eq!(shown, ["SO IT", "BEGINS AND", "GOES", "ON"]);
        assert_eq!((cues[1].start, cues[1].end), (2.5, 3.25));

        let srt = srt(&cues[2..]);
        assert_eq!(
            srt,
            "1\n00:00:03,250 --> 00:00:03,500\nGOES\n\n2\n01:00:02,000 --> 01:00:02,500\nON\n\n"
        );
        let config = SubtitleConfig { max_seconds: 0.5, ..config };
        assert_eq!(super::cues(&transcript(&words[..2], " "), &config).len(), 1);
        assert_eq!(super::cues(&transcript(&words[2..5], " "), &config).len(), 2);

        let chinese = [word("你", 0.0, 0.2), word("好", 0.2, 0.5)];
        assert_eq!(super::cues(&transcript(&chinese, ""), &config)[0].text, "你好");
    }

    #[test]
    fn vtt_escapes_markup() {
        let cue = Cue { text: "A < B & C".into(), start: 0.0, end: 0.9996 };
        assert_eq!(vtt(&[cue]), "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nA &lt; B &amp; C\n\n");
        assert_eq!(srt(&[]), "");
    }
}
