//! Tensor names here and in other layouts.

/// Maps tensor names between the native and another layout, in both directions.
///
/// `*` matches one component of a dotted name, the same on both sides. Alternatives in braces in
/// the other layout, as in `attention.{q,k,v}_proj.*`, are concatenated along the first dimension.
/// An alternative with `?`, as in `{query,?key,value}.bias`, does not exist in the other layout:
/// imports use zeros, exports omit it.
#[derive(Clone, Debug)]
pub struct NameMap {
    layout: &'static str,
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    ours: String,
    theirs: String,
    /// Shape in the other layout, if it differs.
    shape: Option<Vec<i64>>,
}

/// A tensor of the other layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceTensor {
    pub(super) name: String,
    /// Whether the other layout lacks it, so that its values are zeros.
    pub(super) optional: bool,
}

impl NameMap {
    /// Creates an empty map of the layout named `layout` in messages.
    pub fn new(layout: &'static str) -> Self {
        Self { layout, rows: Vec::new() }
    }

    /// Returns the name of the layout.
    pub fn layout(&self) -> &'static str {
        self.layout
    }

    /// Adds pairs of names, all with the prefixes `our_prefix` and `their_prefix`.
    #[must_use]
    pub fn rows(mut self, our_prefix: &str, their_prefix: &str, rows: &[(&str, &str)]) -> Self {
        self.rows.extend(rows.iter().map(|(ours, theirs)| Row {
            ours: format!("{our_prefix}{ours}"),
            theirs: format!("{their_prefix}{theirs}"),
            shape: None,
        }));
        self
    }

    /// Adds a variable that has the shape `shape` in the other layout.
    #[must_use]
    pub fn shaped(mut self, ours: &str, theirs: String, shape: Vec<i64>) -> Self {
        self.rows.push(Row { ours: ours.to_owned(), theirs, shape: Some(shape) });
        self
    }

    /// Adds the blocks of fairseq's data2vec 2.0: the first `prenet` of `depth` have the prefix
    /// `before`, and the others are counted from 0 with the prefix `main`.
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

    /// Finds the row of a variable, and what its stars match.
    fn find(&self, name: &str) -> Option<(&Row, Vec<String>)> {
        self.rows.iter().find_map(|row| Some((row, match_pattern(&row.ours, name)?)))
    }

    /// Returns the tensors that make up the variable `name`.
    pub(super) fn sources(&self, name: &str) -> Option<Vec<SourceTensor>> {
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
            return Some(vec![SourceTensor { name: filled, optional: false }]);
        };
        let (inner, end) = rest.split_once('}')?;
        let part = |choice: &str| {
            let name = choice.trim_start_matches('?');
            SourceTensor { name: format!("{start}{name}{end}"), optional: name != choice }
        };
        Some(inner.split(',').map(part).collect())
    }

    /// Returns the shape of the variable `name` in the other layout, if it differs.
    pub(super) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.find(name)?.0.shape.clone()
    }
}

/// Returns the components of `name` that the stars of `pattern` match; `None` without a match.
fn match_pattern(pattern: &str, name: &str) -> Option<Vec<String>> {
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

    fn name_map() -> NameMap {
        NameMap::new("theirs").rows(
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
    fn maps_names_with_stars_and_alternatives() {
        let names = |name: &str| -> Vec<String> {
            let parts = name_map().sources(name).unwrap_or_default();
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
