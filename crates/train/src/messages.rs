//! Errors and panics as one line of text.

use std::any::Any;

use data2vec_core::panic_message;

/// Returns an error and its causes in one line, without repetition.
pub fn describe(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let text = lines.collect::<Vec<_>>().join(" ");
        match parts.last() {
            // Many errors include the message of their cause, and the file too.
            Some(last) if last.contains(&text) => continue,
            Some(last) if text.starts_with(last.as_str()) => drop(parts.pop()),
            _ => {}
        }
        parts.push(text);
    }
    parts.join(": ")
}

/// Returns a panic's message in one line: LibTorch's messages carry a C++ stack trace.
pub fn describe_panic(panic: &(dyn Any + Send)) -> String {
    let text = panic_message(panic);
    let text = text.split("\\n").next().unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use data2vec_core::Error;

    #[test]
    fn describe_repeats_nothing() {
        let full = std::io::Error::other("disk full");
        let error = Err::<(), _>(Error::io("a.wav", full)).context("a.wav").context("step 4");
        assert_eq!(describe(&error.unwrap_err()), "step 4: a.wav: disk full");
        let error = anyhow::anyhow!("line 1\n  |\n  | x\n").context("recipe.toml");
        assert_eq!(describe(&error), "recipe.toml: line 1 | | x");
    }

    #[test]
    fn describe_panic_keeps_the_first_line() {
        let of = |text: &str| describe_panic(&text.to_owned());
        assert_eq!(of("shape [2] is not [3]"), "shape [2] is not [3]");
        assert_eq!(of("Torch(\"no\\nException raised from\")"), "Torch(\"no");
        assert_eq!(describe_panic(&"first\nsecond"), "first");
        assert_eq!(describe_panic(&7), "no message");
    }
}
