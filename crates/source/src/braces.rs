//! Brace expansion (`shard-{000..017}.tar`, `{train,valid}.tar`), as in WebDataset, and globs
//! (`*.tar`).

use crate::{Error, Result};

/// Maximum number of expansions; more is assumed to be a typing error.
const MAX_EXPANSIONS: usize = 1_000_000;

/// Expands the braces of `pattern`, in order.
pub(crate) fn expand(pattern: &str) -> Result<Vec<String>> {
    let bad = |reason: &str| Error::shard(pattern, reason);
    let Some(open) = pattern.find('{') else { return Ok(vec![pattern.to_owned()]) };
    let close = closing(&pattern[open..]).ok_or_else(|| bad("unmatched {"))? + open;
    let (before, inside, after) =
        (&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]);
    let choices = match range(inside) {
        Some(range) => range.map_err(|reason| bad(&reason))?,
        None => {
            let parts = split(inside);
            if parts.len() < 2 {
                let reason =
                    "braces must contain a range such as {000..017} or alternatives such as {a,b}";
                return Err(bad(reason));
            }
            let mut choices = Vec::new();
            for part in parts {
                choices.extend(expand(part)?);
            }
            choices
        }
    };
    let rest = expand(after)?;
    if choices.len().saturating_mul(rest.len()) > MAX_EXPANSIONS {
        return Err(bad(&format!("expands to more than {MAX_EXPANSIONS} names")));
    }
    let all = choices
        .iter()
        .flat_map(|choice| rest.iter().map(move |rest| format!("{before}{choice}{rest}")));
    Ok(all.collect())
}

/// Returns the index of the brace that closes the one `text` begins with.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(at, c)| {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        (depth == 0).then_some(at)
    })
}

/// Splits at commas outside inner braces.
fn split(inside: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[start..]);
    parts
}

/// Expands a range such as `000..017`, zero-padded to its wider end; `None` if it is not a range.
fn range(inside: &str) -> Option<std::result::Result<Vec<String>, String>> {
    let (first, last) = inside.split_once("..").filter(|_| !inside.contains([',', '{']))?;
    let number = |text: &str| -> Option<u64> {
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
    };
    let (Some(from), Some(to)) = (number(first), number(last)) else {
        return Some(Err("the ends of a range must be numbers, as in {000..017}".into()));
    };
    if from > to || to - from >= MAX_EXPANSIONS as u64 {
        return Some(Err(format!("a range must ascend and have at most {MAX_EXPANSIONS} numbers")));
    }
    let padded = [first, last].iter().any(|end| end.len() > 1 && end.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    Some(Ok((from..=to).map(|number| format!("{number:0width$}")).collect()))
}

/// Returns true if `name` matches the glob `pattern`: `*` matches any characters, `?` matches one.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    // The last star and the name position to retry from when it takes one more character.
    let (mut p, mut n, mut retry) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match retry {
                Some((star, taken)) => {
                    retry = Some((star, taken + 1));
                    (p, n) = (star + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_ranges_alternatives_and_products() {
        let all = |pattern: &str| expand(pattern).expect("a pattern").join(" ");
        assert_eq!(all("a.tar"), "a.tar");
        assert_eq!(all("s-{008..011}.tar"), "s-008.tar s-009.tar s-010.tar s-011.tar");
        assert_eq!(all("{8..11}"), "8 9 10 11");
        assert_eq!(all("{a,b}{0..1}"), "a0 a1 b0 b1");
        assert_eq!(all("{train/{00..01},valid}.tar"), "train/00.tar train/01.tar valid.tar");
        for bad in ["{a", "{a}", "{3..1}", "{a..b}", "{0..99999999}", "{0..9999}{0..9999}"] {
            assert!(expand(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn matches_globs() {
        for (pattern, name, fits) in [
            ("*.tar", "a.tar", true),
            ("*.tar", "a.tar.gz", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b", false),
            ("s-??.tar", "s-01.tar", true),
            ("s-??.tar", "s-1.tar", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
