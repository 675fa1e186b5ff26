//! Our names and theirs.

/// Rows of our names and theirs, for both directions.
///
/// A `*` in a row stands for one part of a name between dots, the same on both sides. Theirs may hold
/// alternatives in braces: ours is these one after the other along the first dimension, as in
/// `attention.{q,k,v}_proj.*`. One with a `?` before it, as in `{query,?key,value}.bias`, they do not
/// have: zeros here, left out there.
#[derive(Clone, Debug)]
pub struct Table {
    layout: &'static str,
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    ours: String,
    theirs: String,
    /// Their shape, where it is another one of as many numbers.
    shape: Option<Vec<i64>>,
}

/// One of their tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    /// They never have it: zeros.
    pub(super) optional: bool,
}

impl Table {
    /// An empty one of the layout that is called `layout` in messages.
    pub fn new(layout: &'static str) -> Self {
        Self { layout, rows: Vec::new() }
    }

    /// What the layout is called.
    pub fn layout(&self) -> &'static str {
        self.layout
    }

    /// Adds `rows`; `our_prefix` and `their_prefix` come before all names in them.
    #[must_use]
    pub fn rows(mut self, our_prefix: &str, their_prefix: &str, rows: &[(&str, &str)]) -> Self {
        self.rows.extend(rows.iter().map(|(ours, theirs)| Row {
            ours: format!("{our_prefix}{ours}"),
            theirs: format!("{their_prefix}{theirs}"),
            shape: None,
        }));
        self
    }

    /// Adds one variable that has the shape `shape` there.
    #[must_use]
    pub fn shaped(mut self, ours: &str, theirs: String, shape: Vec<i64>) -> Self {
        self.rows.push(Row { ours: ours.to_owned(), theirs, shape: Some(shape) });
        self
    }

    /// Adds all blocks of fairseq's 2.0: the first `prenet` of `depth` have names of their own, and the main
    /// ones are counted from 0 again.
    #[must_use]
    pub fn fairseq_blocks(mut self, main: &str, before: &str, prenet: usize, depth: usize) -> Self {
        for i in 0..depth {
            let theirs = match i.checked_sub(prenet) {
                Some(i) => format!("{main}{i}."),
                None => format!("{before}{i}."),
            };
            let ours = format!("encoder.transformer.blocks.{i}.");
            self = self.rows(&ours, &theirs, &[("*.*", "*.*"), ("*.*.*", "*.*.*")]);
        }
        self
    }

    fn find(&self, name: &str) -> Option<(&Row, Vec<String>)> {
        self.rows.iter().find_map(|row| Some((row, matched(&row.ours, name)?)))
    }

    /// Where our variable `name` comes from.
    pub(super) fn parts(&self, name: &str) -> Option<Vec<Part>> {
        let (row, captured) = self.find(name)?;
        let mut captured = captured.into_iter();
        let filled: String = row
            .theirs
            .split_inclusive('*')
            .map(|piece| match piece.strip_suffix('*') {
                Some(start) => start.to_owned() + &captured.next().unwrap_or_default(),
                None => piece.to_owned(),
            })
            .collect();
        let Some((start, rest)) = filled.split_once('{') else {
            return Some(vec![Part { name: filled, optional: false }]);
        };
        let (inner, end) = rest.split_once('}')?;
        let part = |choice: &str| {
            let name = choice.trim_start_matches('?');
            Part { name: format!("{start}{name}{end}"), optional: name != choice }
        };
        Some(inner.split(',').map(part).collect())
    }

    /// Their shape of our variable `name`, if it is another than ours.
    pub(super) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.find(name)?.0.shape.clone()
    }
}

/// What the stars of `pattern` stand for in `name`.
fn matched(pattern: &str, name: &str) -> Option<Vec<String>> {
    let (mut pattern, mut name) = (pattern.split('.'), name.split('.'));
    let mut captured = Vec::new();
    loop {
        match (pattern.next(), name.next()) {
            (None, None) => return Some(captured),
            (Some("*"), Some(part)) => captured.push(part.to_owned()),
            (Some(a), Some(b)) if a == b => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table::new("theirs").rows(
            "encoder.",
            "model.",
            &[
                ("b.*.qkv.*", "layers.*.{q,k,v}_proj.*"),
                ("b.*.bias", "l.*.{q,?k,v}.bias"),
                ("n", "m"),
            ],
        )
    }

    #[test]
    fn names_are_found_and_filled() {
        let names = |name: &str| -> Vec<String> {
            let parts = table().parts(name).unwrap_or_default();
            parts
                .into_iter()
                .map(|part| format!("{}{}", part.name, u8::from(part.optional)))
                .collect()
        };
        let expected = ["q", "k", "v"].map(|p| format!("model.layers.11.{p}_proj.weight0"));
        assert_eq!(names("encoder.b.11.qkv.weight"), expected);
        assert_eq!(
            names("encoder.b.0.bias"),
            ["model.l.0.q.bias0", "model.l.0.k.bias1", "model.l.0.v.bias0"]
        );
        assert_eq!(names("encoder.n"), ["model.m0"]);
        assert!(names("encoder.n.x").is_empty() && names("encoder").is_empty());
    }
}
