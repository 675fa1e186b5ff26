//! Lines at the foot of the terminal that are drawn again and again, and text that goes above them.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use console::{Term, measure_text_width, truncate_str};

/// The lines that stand there, of which a terminal has one set.
static DRAWN: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn drawn() -> MutexGuard<'static, Vec<String>> {
    DRAWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether standard error is a terminal on which lines can be drawn again.
pub fn is_there() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Rows and columns.
pub fn size() -> (usize, usize) {
    let (rows, columns) = Term::stderr().size();
    (usize::from(rows), usize::from(columns))
}

/// Draws `lines`, cut to the terminal's width, in place of those that stand there.
pub fn draw(lines: Vec<String>) {
    let (_, columns) = size();
    let mut drawn = drawn();
    let mut text = erase(&drawn, columns);
    // The last column stays free: terminals differ in where they put the cursor behind it.
    let cut = |line: String| truncate_str(&line, columns.saturating_sub(1), "").into_owned();
    *drawn = lines.into_iter().map(cut).collect();
    text += &all(&drawn);
    show(&text);
}

/// Takes them away.
pub fn clear() {
    let mut drawn = drawn();
    show(&erase(&drawn, size().1));
    drawn.clear();
}

/// Has `write` write whole lines to the terminal, above those that stand there.
pub fn above(write: impl FnOnce()) {
    let drawn = drawn();
    if drawn.is_empty() {
        return write();
    }
    show(&erase(&drawn, size().1));
    write();
    show(&all(&drawn));
}

fn all(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// That nobody looks is no reason to end a run.
fn show(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// What takes `lines` away, which were drawn when the terminal may have been wider: by now it has
/// wrapped them.
fn erase(lines: &[String], columns: usize) -> String {
    let rows = |line: &String| measure_text_width(line).div_ceil(columns.max(1)).max(1);
    match lines.iter().map(rows).sum::<usize>() {
        0 => String::new(),
        rows => format!("\r\x1b[{rows}A\x1b[J"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_a_narrower_terminal_wrapped_are_erased_whole() {
        assert_eq!(erase(&[], 80), "");
        let lines = ["a".repeat(79), String::new(), format!("\x1b[2m{}\x1b[0m", "b".repeat(40))];
        assert_eq!(erase(&lines, 80), "\r\x1b[3A\x1b[J");
        assert_eq!(erase(&lines, 40), "\r\x1b[4A\x1b[J");
        assert_eq!(erase(&lines, 39), "\r\x1b[6A\x1b[J");
    }
}
