//! Pretraining data: reading, packing, splitting, caching.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write;
use std::path::Path;

use data2vec_core::{Dataset, Error};
use data2vec_nlp::{
    Documents, InvalidUtf8, Packing, TextDataConfig, TextDataset, Tokenizer, TokenizerSource,
    train_tokenizer,
};
use flate2::{Compression, write::GzEncoder};
use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;

/// A corpus, a cache directory and a byte tokenizer (`a` is 68, `</s>` 2).
struct Fixture {
    dir: TempDir,
    config: TextDataConfig,
    /// Number of progress calls of cache builds.
    builds: usize,
}

impl Fixture {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = dir.path().join("tokenizer.json");
        Tokenizer::train(["a"].into_iter(), 261).unwrap().save_json(&tokenizer).unwrap();
        let config = TextDataConfig {
            tokenizer: TokenizerSource::File(tokenizer),
            block: 8,
            packing: Packing::Stream,
            documents: Documents::File,
            json_key: "text".into(),
            invalid_utf8: InvalidUtf8::Replace,
        };
        let fixture = Self { dir, config, builds: 0 };
        files.iter().for_each(|(name, bytes)| fixture.write(name, bytes));
        fixture
    }

    fn texts(&self) -> std::path::PathBuf {
        self.dir.path().join("texts")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.texts().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn open(&mut self) -> data2vec_core::Result<TextDataset> {
        self.open_at(&self.texts())
    }

    fn open_at(&mut self, path: &Path) -> data2vec_core::Result<TextDataset> {
        let builds = &mut self.builds;
        let cache = self.dir.path().join("cache");
        TextDataset::open(path, &self.config, cache, &mut |_| *builds += 1)
    }

    fn error(&mut self) -> String {
        self.open().unwrap_err().to_string()
    }
}

/// Decodes all blocks, with `<` for `<s>` and `/` for `</s>`.
fn blocks(data: &TextDataset) -> Vec<String> {
    let show = |ids: Vec<i64>| {
        let show = |&id: &i64| match id {
            0 => "<".to_owned(),
            2 => "/".to_owned(),
            id => data.tokenizer().decode(&[id]).unwrap(),
        };
        ids.iter().map(show).collect::<String>()
    };
    let mut rng = StdRng::seed_from_u64(0);
    (0..data.len())
        .map(|i| {
            let ids = data.load(i, &mut rng).unwrap();
            assert_eq!(data.size(i), ids.len() as u64);
            show(ids)
        })
        .collect()
}

#[test]
fn packs_stream_documents_and_lines() {
    let mut fixture = Fixture::new(&[
        ("1.txt", b"abc\n\n  d\ne"),
        ("2.txt", b"fghijklmnopq\r\nrs\n"),
        ("3.txt", b""),
    ]);
    fixture.config.packing = Packing::Stream;
    assert_eq!(blocks(&fixture.open().unwrap()), ["<abc/  d", "</e//fgh", "<ijklmno", "<pq/rs//"]);
    fixture.config.packing = Packing::Document;
    assert_eq!(
        blocks(&fixture.open().unwrap()),
        ["<abc/  d", "</e/", "<fghijkl", "<mnopq/r", "<s/"]
    );
    fixture.config.packing = Packing::Lines;
    assert_eq!(
        blocks(&fixture.open().unwrap()),
        ["<abc/", "<  d/e/", "<fghijkl", "<mnopq/", "<rs/"]
    );
    assert_eq!(fixture.open().unwrap().num_documents(), 2);
    assert_eq!(fixture.builds, 1, "packing does not affect the cache");
}

#[test]
fn splits_documents_by_file_blank_line_line_and_object() {
    let json = br#"{"text": "a\nb", "id": 1}
{"text": "c"}
{"text": ""}
{"body": "d"}
nonsense
"#;
    let mut fixture = Fixture::new(&[("x.jsonl", json)]);
    fixture.config.packing = Packing::Document;
    let data = fixture.open().unwrap();
    assert_eq!(blocks(&data), ["<a/b/", "<c/"]);
    let reasons = data.skipped();
    assert_eq!(reasons.len(), 2);
    assert!(
        reasons[0].contains("x.jsonl: line 4: no object with a string \"text\""),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("line 5"), "{reasons:?}");
    fixture.config.json_key = "body".into();
    assert_eq!(blocks(&fixture.open().unwrap()), ["<d/"]);

    let mut fixture = Fixture::new(&[("x.txt", b"a\nb\n \n\nc\n")]);
    fixture.config.packing = Packing::Document;
    for (documents, expected) in [
        (Documents::File, &["<a/b/c/"][..]),
        (Documents::BlankLine, &["<a/b/", "<c/"]),
        (Documents::Line, &["<a/", "<b/", "<c/"]),
    ] {
        fixture.config.documents = documents;
        assert_eq!(blocks(&fixture.open().unwrap()), expected, "{documents:?}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::best());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

#[test]
fn opens_directories_gzip_and_single_files() {
    let mut fixture = Fixture::new(&[
        ("b/2.txt.gz", &gzip(b"two")),
        ("a/1.TXT", b"\xef\xbb\xbfone"),
        ("c.jsonl.gz", &gzip(br#"{"text": "three"}"#)),
        (".hidden.txt", b"no"),
        ("picture.png", b"no"),
    ]);
    fixture.config.packing = Packing::Document;
    assert_eq!(blocks(&fixture.open().unwrap()), ["<one/", "<two/", "<three/"]);
    fixture.write("corpus", b"four");
    let path = fixture.texts().join("corpus");
    assert_eq!(blocks(&fixture.open_at(&path).unwrap()), ["<four/"]);
}

#[test]
fn rebuilds_cache_only_after_changes() {
    let mut fixture = Fixture::new(&[("1.txt", b"abc")]);
    let rebuilds = |fixture: &mut Fixture| {
        let before = fixture.builds;
        fixture.open().unwrap();
        fixture.builds > before
    };
    assert!(rebuilds(&mut fixture));
    assert!(!rebuilds(&mut fixture));
    fixture.write("2.txt", b"d");
    assert!(rebuilds(&mut fixture), "a new file");
    fixture.write("2.txt", b"de");
    assert!(rebuilds(&mut fixture), "another size");
    assert!(!rebuilds(&mut fixture));
    fixture.config.invalid_utf8 = InvalidUtf8::Refuse;
    assert!(rebuilds(&mut fixture), "another setting");
    let cache = fixture.dir.path().join("cache");
    let file = |at: usize| fs::read_dir(&cache).unwrap().nth(at).unwrap().unwrap().path();
    let count = fs::read_dir(&cache).unwrap().count();
    assert_eq!(count, 2, "one file per setting, no drafts");
    for at in 0..count {
        let bytes = fs::read(file(at)).unwrap();
        fs::write(file(at), &bytes[..bytes.len() - 3]).unwrap();
    }
    assert!(rebuilds(&mut fixture), "truncated cache");
}

#[test]
fn replaces_or_rejects_invalid_utf8() {
    let mut fixture = Fixture::new(&[("1.txt", b"ab\nc\xffd\xc3\n")]);
    let data = fixture.open().unwrap();
    assert_eq!(data.num_replaced(), 2);
    fixture.config.invalid_utf8 = InvalidUtf8::Refuse;
    assert!(fixture.error().contains("1.txt: line 2, byte 2: not UTF-8"), "{}", fixture.error());
    fixture.write("1.txt", b"\xff\xfea\0b\0");
    assert!(fixture.error().contains("is UTF-16"));
}

#[test]
fn keeps_characters_intact_across_parts() {
    let text = "é".repeat(700_000) + &" word".repeat(400_000);
    let mut fixture = Fixture::new(&[("1.txt", text.as_bytes())]);
    fixture.config.block = 1 << 22;
    fixture.config.invalid_utf8 = InvalidUtf8::Refuse;
    let data = fixture.open().unwrap();
    let ids = data.load(0, &mut StdRng::seed_from_u64(0)).unwrap();
    assert!(data.tokenizer().decode(&ids).unwrap() == text);
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 2, "one line, one document");
}

#[test]
fn rejects_corpora_without_text() {
    let mut fixture = Fixture::new(&[("a.png", b"x")]);
    assert!(fixture.error().contains("no text in it (looked for txt"));
    let mut fixture = Fixture::new(&[("a.txt", b" \n\n")]);
    assert!(fixture.error().contains("all files are empty"), "{}", fixture.error());
    let mut fixture = Fixture::new(&[("a.jsonl", b"{}")]);
    assert!(fixture.error().contains("line 1: no object"), "{}", fixture.error());
    let missing = fixture.texts().join("none");
    assert!(matches!(fixture.open_at(&missing), Err(Error::Io { .. })));
    fixture.config.block = 1;
    assert!(matches!(fixture.open(), Err(Error::Config { key, .. }) if key == "data.block"));
}

#[test]
fn skips_rest_of_damaged_or_oversized_gzip() {
    let mut truncated = gzip(&b"word ".repeat(100_000));
    truncated.truncate(truncated.len() / 2);
    let bomb = gzip(&vec![b'\n'; 32 << 20]);
    let mut fixture =
        Fixture::new(&[("a.txt", b"a"), ("b.txt.gz", &truncated), ("c.txt.gz", &bomb)]);
    let reasons = fixture.open().unwrap().skipped();
    assert_eq!(reasons.len(), 2);
    assert!(reasons[0].contains("b.txt.gz") && reasons[0].contains("the rest is left out"));
    assert!(reasons[1].contains("more than 200 times"), "{reasons:?}");
}

#[test]
fn split_is_disjoint_and_stable_under_growth() {
    let names: Vec<String> = (0..60).map(|i| format!("{i:02}.txt")).collect();
    let letters = |i: usize| [b'a' + (i % 26) as u8, b'a' + (i / 26) as u8];
    let mut fixture = Fixture::new(&[]);
    fixture.config.packing = Packing::Document;
    for (i, name) in names[..40].iter().enumerate() {
        fixture.write(name, &letters(i));
    }
    let sides = |fixture: &mut Fixture| {
        let (train, held_out) = fixture.open().unwrap().split(0.3, 5).unwrap();
        (blocks(&train), blocks(&held_out))
    };
    let (train, held_out) = sides(&mut fixture);
    assert_eq!(train.len() + held_out.len(), 40);
    assert!((4..20).contains(&held_out.len()));
    assert!(train.iter().all(|block| !held_out.contains(block)));
    for (i, name) in names.iter().enumerate().skip(40) {
        fixture.write(name, &letters(i));
    }
    let (more_train, more_held_out) = sides(&mut fixture);
    assert!(train.iter().all(|block| more_train.contains(block)));
    assert!(held_out.iter().all(|block| more_held_out.contains(block)));
    let data = fixture.open().unwrap();
    for share in [0.0, 1.0, -1.0, 1e-9, f64::NAN] {
        let Err(Error::Config { key, .. }) = data.split(share, 5) else { panic!("{share}") };
        assert_eq!(key, "train.held_out");
    }
}

#[test]
fn split_divides_long_documents() {
    for packing in [Packing::Stream, Packing::Document, Packing::Lines] {
        let mut fixture = Fixture::new(&[("1.txt", b"abcdefghij\n".repeat(3000).as_slice())]);
        fixture.config.packing = packing;
        let data = fixture.open().unwrap();
        let (train, held_out) = data.split(0.2, 1).unwrap();
        assert_eq!(train.num_tokens() + held_out.num_tokens(), data.num_tokens(), "{packing:?}");
        let share = held_out.num_tokens() as f64 / data.num_tokens() as f64;
        assert!((0.08..0.35).contains(&share), "{packing:?}: {share}");
        let tokens: usize = blocks(&train).iter().map(|b| b.len() - 1).sum();
        assert_eq!(tokens as u64, train.num_tokens());
    }
}

#[test]
fn collate_pads_batches() {
    let mut fixture = Fixture::new(&[("1.txt", b"abcd"), ("2.txt", b"e")]);
    fixture.config.packing = Packing::Document;
    let data = fixture.open().unwrap();
    let mut rng = StdRng::seed_from_u64(0);
    let examples = (0..2).map(|i| data.load(i, &mut rng).unwrap()).collect();
    let batch = data.collate(examples, &mut rng).unwrap();
    assert_eq!(batch.inputs.size(), [2, 6]);
    assert_eq!(batch.lengths().unwrap(), [6, 3]);
    assert_eq!(batch.inputs.int64_value(&[1, 3]), 1);
    assert!(data.collate(vec![], &mut rng).is_err());
}

#[test]
fn trains_tokenizer_on_corpus() {
    let words = "so many words of so many kinds, and so many more of them ".repeat(50);
    let mut fixture = Fixture::new(&[("1.txt", words.as_bytes())]);
    fixture.config.tokenizer = TokenizerSource::Train(280);
    let data = fixture.open().unwrap();
    assert_eq!(data.tokenizer().vocab_size(), 280);
    let again = train_tokenizer(fixture.texts(), &fixture.config, 280).unwrap();
    assert_eq!(again.fingerprint(), data.tokenizer().fingerprint());
    let builds = fixture.builds;
    fixture.open().unwrap();
    assert_eq!(fixture.builds, builds);
    fixture.config.tokenizer = TokenizerSource::Train(5000);
    assert!(fixture.error().contains("entries, not 5000"), "{}", fixture.error());
}

#[test]
fn keeps_file_order_across_threads() {
    let mut fixture = Fixture::new(&[]);
    let mut expected = String::new();
    for i in 0..30 {
        let line = format!("{i:02}").repeat(60_000 + 1000 * i);
        fixture.write(&format!("{i:02}.txt"), line.as_bytes());
        expected += &(line + "//");
    }
    fixture.config.block = 5 << 20;
    assert!(blocks(&fixture.open().unwrap()).concat() == format!("<{expected}"));
}
