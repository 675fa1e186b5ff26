//! TF-IDF of words, the baseline that text encoders must beat.

use std::collections::{BTreeMap, HashMap, HashSet};

use tch::Tensor;

/// Most terms that are kept.
const MAX_TERMS: usize = 10_000;
/// Most numbers of all texts together: 1 GiB of f32.
const MAX_VALUES: usize = 1 << 28;

/// Weights of terms: words and pairs of adjacent words.
///
/// As scikit-learn's `TfidfVectorizer(ngram_range=(1, 2), max_features=10000)`: words are lower-case
/// and have at least two letters, digits or underscores; the most frequent terms are kept; a term's
/// weight is its count in the text × (ln((1 + texts) / (1 + texts with it)) + 1); each text's vector
/// has length 1.
#[derive(Debug)]
pub struct TfIdf {
    /// Column and weight of each term.
    terms: HashMap<String, (usize, f64)>,
}

impl TfIdf {
    /// Chooses and weighs the terms of `texts`; fewer of them if `others` further texts would need
    /// too much memory.
    pub fn fit(texts: &[String], others: usize) -> Self {
        let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new(); // of terms, of texts
        for text in texts {
            let terms = terms(text);
            let distinct: HashSet<&String> = terms.iter().collect();
            for term in distinct {
                counts.entry(term.clone()).or_default().1 += 1;
            }
            for term in &terms {
                counts.entry(term.clone()).or_default().0 += 1;
            }
        }
        let mut sorted: Vec<_> = counts.into_iter().collect(); // alphabetical
        sorted.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count)); // stable
        sorted.truncate(MAX_TERMS.min(MAX_VALUES / (texts.len() + others).max(1)).max(1));
        let count = texts.len() as f64;
        let weigh = |(column, (term, (_, texts))): (usize, (String, (usize, usize)))| {
            (term, (column, ((1.0 + count) / (1.0 + texts as f64)).ln() + 1.0))
        };
        Self { terms: sorted.into_iter().enumerate().map(weigh).collect() }
    }

    /// Returns one vector for each text, `(N, terms)` f32; zero for a text without known terms.
    pub fn transform(&self, texts: &[String]) -> Tensor {
        let width = self.terms.len();
        let mut values = vec![0.0_f32; texts.len() * width];
        for (text, row) in texts.iter().zip(values.chunks_mut(width.max(1))) {
            for term in terms(text) {
                if let Some(&(column, weight)) = self.terms.get(&term) {
                    row[column] += weight as f32;
                }
            }
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            if norm > 0.0 {
                row.iter_mut().for_each(|x| *x /= norm);
            }
        }
        Tensor::from_slice(&values).reshape([texts.len() as i64, width as i64])
    }
}

/// Returns the words of a text and its pairs of adjacent words.
fn terms(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    let words: Vec<&str> = words.filter(|word| word.chars().nth(1).is_some()).collect();
    let pairs = words.windows(2).map(|pair| pair.join(" "));
    words.iter().map(|word| (*word).to_owned()).chain(pairs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn splits_words_and_pairs() {
        assert_eq!(terms("It's a GOOD film!"), ["it", "good", "film", "it good", "good film"]);
        assert!(terms("a . ?").is_empty());
    }

    /// The numbers are scikit-learn 1.9.1's.
    #[test]
    fn equals_scikit_learn() {
        let train = texts(&["good film good", "bad film", "good plot"]);
        let tfidf = TfIdf::fit(&train, 0);
        assert_eq!(tfidf.terms.len(), 8);
        let x = tfidf.transform(&texts(&["good film good", "a bad plot, unseen"]));
        let at = |row: i64, term: &str| x.double_value(&[row, tfidf.terms[term].0 as i64]);
        let expected = [
            (0, "good", 0.687_702_859),
            (0, "film", 0.343_851_430),
            (0, "good film", 0.452_123_308),
            (0, "bad", 0.0),
            (1, "bad", std::f64::consts::FRAC_1_SQRT_2),
            (1, "plot", std::f64::consts::FRAC_1_SQRT_2),
        ];
        for (row, term, value) in expected {
            assert!((at(row, term) - value).abs() < 1e-6, "{term}: {}", at(row, term));
        }
    }

    #[test]
    fn most_frequent_terms_are_kept() {
        let many: Vec<String> = (0..MAX_TERMS).map(|i| format!("word{i} common")).collect();
        let tfidf = TfIdf::fit(&many, 0);
        assert_eq!(tfidf.terms.len(), MAX_TERMS);
        assert_eq!(tfidf.terms["common"].0, 0);
        assert!(TfIdf::fit(&many, MAX_VALUES / 100).terms.len() <= 100);
    }
}
