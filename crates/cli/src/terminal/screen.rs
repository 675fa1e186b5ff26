//! Redraws a block of lines at the bottom of the terminal, and prints text above it.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use console::{Term, measure_text_width, truncate_str};

/// The lines on the screen. A terminal has one such block.
static DRAWN: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn drawn() -> MutexGuard<'static, Vec<String>> {
    DRAWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether standard error is a terminal that can redraw lines.
pub fn is_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns the numbers of rows and columns.
pub fn size() -> (usize, usize) {
    let (rows, columns) = Term::stderr().size();
    (usize::from(rows), usize::from(columns))
}

/// Replaces the block by `lines`, truncated to the terminal's width.
pub fn draw(lines: Vec<String>) {
    let (_, columns) = size();
    let mut drawn = drawn();
    let mut text = erase(&drawn, columns);
    // Terminals differ in where the cursor goes after the last column: leave it free.
    let truncate = |line: String| truncate_str(&line, columns.saturating_sub(1), "").into_owned();
    *drawn = lines.into_iter().map(truncate).collect();
    text += &join(&drawn);
    write_stderr(&text);
}

/// Erases the block.
pub fn clear() {
    let mut drawn = drawn();
    write_stderr(&erase(&drawn, size().1));
    drawn.clear();
}

/// Calls `write`, which prints complete lines, above the block.
pub fn above(write: impl FnOnce()) {
    let drawn = drawn();
    if drawn.is_empty() {
        return write();
    }
    write_stderr(&erase(&drawn, size().1));
    write();
    write_stderr(&join(&drawn));
}

fn join(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Writes to standard error. Ignores errors: a closed terminal does not end a run.
fn write_stderr(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Returns the escape sequence that erases `lines`. If the terminal was wider when they were drawn,
/// it has wrapped them since.
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
    fn erases_lines_wrapped_by_a_narrower_terminal() {
        assert_eq!(erase(&[], 80), "");
        let lines = ["a".repeat(79), String::new(), format!("\x1b[2m{}\x1b[0m", "b".repeat(40))];
        assert_eq!(erase(&lines, 80), "\r\x1b[3A\x1b[J");
        assert_eq!(erase(&lines, 40), "\r\x1b[4A\x1b[J");
        assert_eq!(erase(&lines, 39), "\r\x1b[6A\x1b[J");
    }
}
