//! "Did you mean …?"

/// The end of an error about an unknown name: the nearest known one, and all of them.
pub fn suggestion(name: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|known| (distance(name, known), known)).min();
    let all = known.join(", ");
    match nearest {
        None => String::from("; there is none yet"),
        Some((distance, known)) if distance <= 2 + name.len() / 4 => {
            format!(", did you mean {known}? There are: {all}")
        }
        Some(_) => format!("; there are: {all}"),
    }
}

/// How many letters to change, add or take away.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn only_near_names_are_suggested() {
        assert!(suggestion("speach", &["speech", "vision"]).starts_with(", did you mean speech?"));
        assert!(
            suggestion("xyzzyxyzzy", &["speech", "vision"])
                .starts_with("; there are: speech, vision")
        );
    }
}
