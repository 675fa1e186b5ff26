//! Corpora: what is read, how it is packed, split and kept.

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

/// A corpus, a place for caches, and a tokenizer of bytes (`a` is 68, `</s>` 2).
struct Place {
    folder: TempDir,
    config: TextDataConfig,
    made: usize,
}

impl Place {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = folder.path().join("tokenizer.json");
        Tokenizer::train(["a"].into_iter(), 261).unwrap().save_json(&tokenizer).unwrap();
        let config = TextDataConfig {
            tokenizer: TokenizerSource::File(tokenizer),
            block: 8,
            packing: Packing::Stream,
            documents: Documents::File,
            json_key: "text".into(),
            invalid_utf8: InvalidUtf8::Replace,
        };
        let place = Self { folder, config, made: 0 };
        files.iter().for_each(|(name, bytes)| place.write(name, bytes));
        place
    }

    fn texts(&self) -> std::path::PathBuf {
        self.folder.path().join("texts")
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
        let made = &mut self.made;
        let cache = self.folder.path().join("cache");
        TextDataset::open(path, &self.config, cache, &mut |_| *made += 1)
    }

    fn error(&mut self) -> String {
        self.open().unwrap_err().to_string()
    }
}

/// Blocks as text, `<` for `<s>` and `/` for `</s>`.
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
fn packing() {
    let mut place = Place::new(&[
        ("1.txt", b"abc\n\n  d\ne"),
        ("2.txt", b"fghijklmnopq\r\nrs\n"),
        ("3.txt", b""),
    ]);
    place.config.packing = Packing::Stream;
    assert_eq!(blocks(&place.open().unwrap()), ["<abc/  d", "</e//fgh", "<ijklmno", "<pq/rs//"]);
    place.config.packing = Packing::Document;
    assert_eq!(blocks(&place.open().unwrap()), ["<abc/  d", "</e/", "<fghijkl", "<mnopq/r", "<s/"]);
    place.config.packing = Packing::Lines;
    assert_eq!(blocks(&place.open().unwrap()), ["<abc/", "<  d/e/", "<fghijkl", "<mnopq/", "<rs/"]);
    assert_eq!(place.open().unwrap().documents(), 2);
    assert_eq!(place.made, 1, "packing needs no other cache");
}

#[test]
fn documents_by_file_blank_line_line_and_object() {
    let json = br#"{"text": "a\nb", "id": 1}
{"text": "c"}
{"text": ""}
{"body": "d"}
nonsense
"#;
    let mut place = Place::new(&[("x.jsonl", json)]);
    place.config.packing = Packing::Document;
    let data = place.open().unwrap();
    assert_eq!(blocks(&data), ["<a/b/", "<c/"]);
    let reasons = data.skipped();
    assert_eq!(reasons.len(), 2);
    assert!(
        reasons[0].contains("x.jsonl: line 4: no object with a string \"text\""),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("line 5"), "{reasons:?}");
    place.config.json_key = "body".into();
    assert_eq!(blocks(&place.open().unwrap()), ["<d/"]);

    let mut place = Place::new(&[("x.txt", b"a\nb\n \n\nc\n")]);
    place.config.packing = Packing::Document;
    for (documents, expected) in [
        (Documents::File, &["<a/b/c/"][..]),
        (Documents::BlankLine, &["<a/b/", "<c/"]),
        (Documents::Line, &["<a/", "<b/", "<c/"]),
    ] {
        place.config.documents = documents;
        assert_eq!(blocks(&place.open().unwrap()), expected, "{documents:?}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::best());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

#[test]
fn folders_gzip_and_one_file_of_any_name() {
    let mut place = Place::new(&[
        ("b/2.txt.gz", &gzip(b"two")),
        ("a/1.TXT", b"\xef\xbb\xbfone"),
        ("c.jsonl.gz", &gzip(br#"{"text": "three"}"#)),
        (".hidden.txt", b"no"),
        ("picture.png", b"no"),
    ]);
    place.config.packing = Packing::Document;
    assert_eq!(blocks(&place.open().unwrap()), ["<one/", "<two/", "<three/"]);
    place.write("corpus", b"four");
    let path = place.texts().join("corpus");
    assert_eq!(blocks(&place.open_at(&path).unwrap()), ["<four/"]);
}

#[test]
fn the_cache_is_made_once_and_again_when_something_changed() {
    let mut place = Place::new(&[("1.txt", b"abc")]);
    let made = |place: &mut Place| {
        let before = place.made;
        place.open().unwrap();
        place.made > before
    };
    assert!(made(&mut place));
    assert!(!made(&mut place));
    place.write("2.txt", b"d");
    assert!(made(&mut place), "a new file");
    place.write("2.txt", b"de");
    assert!(made(&mut place), "another size");
    assert!(!made(&mut place));
    place.config.invalid_utf8 = InvalidUtf8::Refuse;
    assert!(made(&mut place), "another way of reading");
    let cache = place.folder.path().join("cache");
    let file = |at: usize| fs::read_dir(&cache).unwrap().nth(at).unwrap().unwrap().path();
    let count = fs::read_dir(&cache).unwrap().count();
    assert_eq!(count, 2, "one for each way, and no drafts");
    for at in 0..count {
        let bytes = fs::read(file(at)).unwrap();
        fs::write(file(at), &bytes[..bytes.len() - 3]).unwrap();
    }
    assert!(made(&mut place), "half a cache");
}

#[test]
fn bytes_that_are_not_utf8() {
    let mut place = Place::new(&[("1.txt", b"ab\nc\xffd\xc3\n")]);
    let data = place.open().unwrap();
    assert_eq!(data.replaced(), 2);
    place.config.invalid_utf8 = InvalidUtf8::Refuse;
    assert!(place.error().contains("1.txt: line 2, byte 2: not UTF-8"), "{}", place.error());
    place.write("1.txt", b"\xff\xfea\0b\0");
    assert!(place.error().contains("is UTF-16"));
}

#[test]
fn a_character_is_not_torn_by_reading_in_parts() {
    let text = "é".repeat(700_000) + &" word".repeat(400_000);
    let mut place = Place::new(&[("1.txt", text.as_bytes())]);
    place.config.block = 1 << 22;
    place.config.invalid_utf8 = InvalidUtf8::Refuse;
    let data = place.open().unwrap();
    let ids = data.load(0, &mut StdRng::seed_from_u64(0)).unwrap();
    assert!(data.tokenizer().decode(&ids).unwrap() == text);
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 2, "one line, one document");
}

#[test]
fn nothing_usable_is_an_error_that_says_what_was_found() {
    let mut place = Place::new(&[("a.png", b"x")]);
    assert!(place.error().contains("no text in it (looked for txt"));
    let mut place = Place::new(&[("a.txt", b" \n\n")]);
    assert!(place.error().contains("all files are empty"), "{}", place.error());
    let mut place = Place::new(&[("a.jsonl", b"{}")]);
    assert!(place.error().contains("line 1: no object"), "{}", place.error());
    let missing = place.texts().join("none");
    assert!(matches!(place.open_at(&missing), Err(Error::Io { .. })));
    place.config.block = 1;
    assert!(matches!(place.open(), Err(Error::Config { key, .. }) if key == "data.block"));
}

#[test]
fn broken_and_boundless_gzip_end_where_they_break() {
    let mut whole = gzip(&b"word ".repeat(100_000));
    whole.truncate(whole.len() / 2);
    let bomb = gzip(&vec![b'\n'; 32 << 20]);
    let mut place = Place::new(&[("a.txt", b"a"), ("b.txt.gz", &whole), ("c.txt.gz", &bomb)]);
    let reasons = place.open().unwrap().skipped();
    assert_eq!(reasons.len(), 2);
    assert!(reasons[0].contains("b.txt.gz") && reasons[0].contains("the rest is left out"));
    assert!(reasons[1].contains("more than 200 times"), "{reasons:?}");
}

#[test]
fn a_split_is_stable_under_growth_and_shares_no_document() {
    let names: Vec<String> = (0..60).map(|i| format!("{i:02}.txt")).collect();
    let letters = |i: usize| [b'a' + (i % 26) as u8, b'a' + (i / 26) as u8];
    let mut place = Place::new(&[]);
    place.config.packing = Packing::Document;
    for (i, name) in names[..40].iter().enumerate() {
        place.write(name, &letters(i));
    }
    let sides = |place: &mut Place| {
        let (rest, held_out) = place.open().unwrap().split(0.3, 5).unwrap();
        (blocks(&rest), blocks(&held_out))
    };
    let (rest, held_out) = sides(&mut place);
    assert_eq!(rest.len() + held_out.len(), 40);
    assert!((4..20).contains(&held_out.len()));
    assert!(rest.iter().all(|block| !held_out.contains(block)));
    for (i, name) in names.iter().enumerate().skip(40) {
        place.write(name, &letters(i));
    }
    let (more_rest, more_held_out) = sides(&mut place);
    assert!(rest.iter().all(|block| more_rest.contains(block)));
    assert!(held_out.iter().all(|block| more_held_out.contains(block)));
    let data = place.open().unwrap();
    for share in [0.0, 1.0, -1.0, 1e-9, f64::NAN] {
        let Err(Error::Config { key, .. }) = data.split(share, 5) else { panic!("{share}") };
        assert_eq!(key, "train.held_out");
    }
}

#[test]
fn one_long_document_is_held_out_by_stretches() {
    for packing in [Packing::Stream, Packing::Document, Packing::Lines] {
        let mut place = Place::new(&[("1.txt", b"abcdefghij\n".repeat(3000).as_slice())]);
        place.config.packing = packing;
        let data = place.open().unwrap();
        let (rest, held_out) = data.split(0.2, 1).unwrap();
        assert_eq!(rest.tokens() + held_out.tokens(), data.tokens(), "{packing:?}");
        let share = held_out.tokens() as f64 / data.tokens() as f64;
        assert!((0.08..0.35).contains(&share), "{packing:?}: {share}");
        let tokens: usize = blocks(&rest).iter().map(|b| b.len() - 1).sum();
        assert_eq!(tokens as u64, rest.tokens());
    }
}

#[test]
fn batches_are_filled_up() {
    let mut place = Place::new(&[("1.txt", b"abcd"), ("2.txt", b"e")]);
    place.config.packing = Packing::Document;
    let data = place.open().unwrap();
    let mut rng = StdRng::seed_from_u64(0);
    let examples = (0..2).map(|i| data.load(i, &mut rng).unwrap()).collect();
    let batch = data.collate(examples, &mut rng).unwrap();
    assert_eq!(batch.inputs.size(), [2, 6]);
    assert_eq!(batch.lengths().unwrap(), [6, 3]);
    assert_eq!(batch.inputs.int64_value(&[1, 3]), 1);
    assert!(data.collate(vec![], &mut rng).is_err());
}

#[test]
fn a_tokenizer_of_the_corpus() {
    let words = "so many words of so many kinds, and so many more of them ".repeat(50);
    let mut place = Place::new(&[("1.txt", words.as_bytes())]);
    place.config.tokenizer = TokenizerSource::Train(280);
    let data = place.open().unwrap();
    assert_eq!(data.tokenizer().vocabulary(), 280);
    let again = train_tokenizer(place.texts(), &place.config, 280).unwrap();
    assert_eq!(again.fingerprint(), data.tokenizer().fingerprint());
    let made = place.made;
    place.open().unwrap();
    assert_eq!(place.made, made);
    place.config.tokenizer = TokenizerSource::Train(5000);
    assert!(place.error().contains("entries, not 5000"), "{}", place.error());
}

#[test]
fn many_files_come_in_order_whatever_the_threads_do() {
    let mut place = Place::new(&[]);
    let mut expected = String::new();
    for i in 0..30 {
        let line = format!("{i:02}").repeat(60_000 + 1000 * i);
        place.write(&format!("{i:02}.txt"), line.as_bytes());
        expected += &(line + "//");
    }
    place.config.block = 5 << 20;
    assert!(blocks(&place.open().unwrap()).concat() == format!("<{expected}"));
}
