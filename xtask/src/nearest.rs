//! Suggests the nearest known name in errors about unknown names.

/// Returns the end of an error message about an unknown name: the nearest known name, if one is
/// near, and all known names.
pub fn suggestion(name: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|known| (strsim::levenshtein(name, known), known)).min();
    let all = known.join(", ");
    match nearest {
        None => String::from("; none exist yet"),
        Some((distance, known)) if distance <= 2 + name.len() / 4 => {
            format!("; did you mean {known}? Known: {all}")
        }
        Some(_) => format!("; known: {all}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_near_names() {
        let known = ["speech", "vision"];
        assert!(suggestion("speach", &known).starts_with("; did you mean speech?"));
        assert_eq!(suggestion("xyzzyxyzzy", &known), "; known: speech, vision");
        assert_eq!(suggestion("speech", &[]), "; none exist yet");
    }
}
