//! Labelled texts: GLUE and other files, invalid lines, truncation, splits, batches.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write;
use std::sync::Arc;

use data2vec_core::data::split::Amount;
use data2vec_core::modality::finetune::Splittable;
use data2vec_core::{Dataset, Error, HeadTask, Targets};
use data2vec_nlp::{LabelledFiles, LabelledTextConfig, LabelledTexts, Tokenizer};
use flate2::{Compression, write::GzEncoder};
use rand::{SeedableRng, rngs::StdRng};
use tch::Tensor;
use tempfile::TempDir;

use HeadTask::{Classification, Regression};

/// A directory and a byte tokenizer (`a` is 68, `</s>` 2).
struct Fixture {
    dir: TempDir,
    config: LabelledTextConfig,
    tokenizer: Arc<Tokenizer>,
}

impl Fixture {
    fn new(max_tokens: usize) -> Self {
        let tokenizer = Arc::new(Tokenizer::train(["a"].into_iter(), 261).unwrap());
        let dir = tempfile::tempdir().unwrap();
        Self { dir, config: LabelledTextConfig { max_tokens }, tokenizer }
    }

    fn open_as(
        &self,
        name: &str,
        bytes: impl AsRef<[u8]>,
        task: HeadTask,
        labels: Option<&[String]>,
    ) -> data2vec_core::Result<LabelledTexts> {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        LabelledTexts::open(path, &self.config, task, Arc::clone(&self.tokenizer), labels)
    }

    fn open(&self, name: &str, bytes: impl AsRef<[u8]>, task: HeadTask) -> LabelledTexts {
        self.open_as(name, bytes, task, None).unwrap()
    }

    fn error(&self, name: &str, bytes: impl AsRef<[u8]>, task: HeadTask) -> String {
        let error = self.open_as(name, bytes, task, None).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

/// Returns all texts and targets.
fn all(data: &LabelledTexts) -> Vec<(String, f64)> {
    (0..data.len()).map(|i| (data.text(i).unwrap(), data.target(i))).collect()
}

#[test]
fn reads_glue_files() {
    let fixture = Fixture::new(64);
    let mut sst =
        fixture.open("train.tsv", "sentence\tlabel\nhide new \t0\nso \"funny\t1\n", Classification);
    assert_eq!(all(&sst), [("hide new".into(), 0.0), ("so \"funny".into(), 1.0)]); // no quoting
    assert_eq!((sst.labels(), sst.skipped().len()), (&["0".to_owned(), "1".to_owned()][..], 0));

    let first_class = |name: &str, text: &str| {
        let data = fixture.open(name, text, Classification);
        (data.text(0).unwrap(), data.labels()[data.target(0) as usize].clone())
    };
    let case = |text: &str, expected: &str, label: &str| {
        assert_eq!(first_class("train.tsv", text), (expected.into(), label.into()), "{text}");
    };
    // CoLA has no header.
    case("gj04\t1\t\tOur friends.\ngj04\t0\t*\tThey it.\n", "Our friends.", "1");
    // MRPC starts with a byte order mark and has CRLF line ends.
    let mrpc = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tA b.\tC d.\r\n0\t7\t8\tE\tF\r\n";
    case(mrpc, "A b. | C d.", "1");
    let qqp = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tHow?\tWhy?\t0\n1\t2\t3\tX?\tX?\t1\n";
    case(qqp, "How? | Why?", "0");
    let mnli = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t\
                sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n\
                0\t1\t2\tfiction\t(a)\t(b)\t(A)\t(B)\tYes.\tNo.\tneutral\tcontradiction\n\
                1\t1\t2\tfiction\t(a)\t(b)\t(A)\t(B)\tYes.\tYes.\tneutral\tentailment\n";
    case(mnli, "Yes. | No.", "contradiction");
    let qnli = "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n1\tWho?\tIt.\tnot_entailment\n";
    case(qnli, "Who? | He.", "entailment");
    let rte =
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n0\tA.\tA.\tentailment\n";
    case(rte, "A. | B.", "not_entailment");

    let stsb = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n\
                0\tmain\tf\t2012\t1\tnone\tnone\tA plane.\tAn air plane.\t4.750\n";
    let data = fixture.open("train.tsv", stsb, Regression);
    assert_eq!(all(&data), [("A plane. | An air plane.".into(), 4.75)]);
    assert_eq!(data.labels(), ["score"]);
    assert!(
        fixture.error("train.tsv", stsb, Classification).contains("head.task = \"regression\"")
    );
    sst = fixture.open("train.tsv", "sentence\tlabel\na\t0.5\n", Regression);
    assert_eq!(sst.target(0), 0.5);
}

#[test]
fn reads_tables_json_lines_and_gzip() {
    let fixture = Fixture::new(64);
    let expected = [("good".to_owned(), 1.0), ("bad".to_owned(), 0.0)];
    let table = "text\tlabel\ngood\tyes\n\nbad\tno\n";
    let json = "{\"text\": \" good\", \"label\": \"yes\"}\n{\"id\": 3, \"label\": \"no\", \"text\": \"bad\"}\n";
    assert_eq!(all(&fixture.open("any.txt", table, Classification)), expected);
    assert_eq!(all(&fixture.open("any.jsonl", json, Classification)), expected);
    let mut gz = GzEncoder::new(Vec::new(), Compression::default());
    gz.write_all(json.as_bytes()).unwrap();
    assert_eq!(all(&fixture.open("any.jsonl.gz", gz.finish().unwrap(), Classification)), expected);
    let pair = "{\"text_a\": \"x\", \"text_b\": \"y\", \"score\": 2}\n{\"text_a\": \"x\", \"text_b\": \"z\", \"score\": -0.5}\n";
    let data = fixture.open("pairs.jsonl", pair, Regression);
    assert_eq!(all(&data), [("x | y".into(), 2.0), ("x | z".into(), -0.5)]);
    assert_eq!(
        data.name(1),
        format!("{}, line 2", fixture.dir.path().join("pairs.jsonl").display())
    );
    // Numeric classes are sorted by value.
    let ten: String = (0..11).rev().map(|i| format!("t\t{i}\n")).collect();
    let data = fixture.open("ten.tsv", format!("text\tlabel\n{ten}"), Classification);
    assert_eq!(
        (data.labels()[2].as_str(), data.labels()[10].as_str(), data.target(0)),
        ("2", "10", 10.0)
    );
}

#[test]
fn neutral_ratings_have_no_class() {
    let fixture = Fixture::new(64);
    let file = "1\t2.5\tVery good.\n2\t-0.6\tRather bad.\n3\t0.5\tWell.\n4\tx\tBroken.\n";
    let data = fixture.open("movie_GroundTruth.txt", file, Classification);
    assert_eq!(all(&data), [("Very good.".into(), 1.0), ("Rather bad.".into(), 0.0)]);
    assert_eq!(data.labels(), ["negative", "positive"]);
    let expected = "2 texts (negative 1, positive 1, 1 neutral left out of the file)";
    assert_eq!(data.describe(), expected);
    assert!(data.skipped()[0].ends_with("movie_GroundTruth.txt: line 4: \"x\" is not a number"));
    let data = fixture.open("movie_GroundTruth.txt", file, Regression);
    assert_eq!((data.len(), data.target(2)), (3, 0.5));
}

#[test]
fn skipped_lines_have_number_and_reason() {
    let fixture = Fixture::new(64);
    let file = b"text\tlabel\ngood\tyes\nno label\n\t\nempty\t\n\tyes\ntoo\tmany\tcolumns\n\xff\tno\nbad\tno\n";
    let data = fixture.open("train.tsv", file, Classification);
    let name = format!("{}: ", fixture.dir.path().join("train.tsv").display());
    let skipped: Vec<String> = data.skipped().iter().map(|s| s.replace(&name, "")).collect();
    let expected = [
        "line 3: 1 columns, not 2",
        "line 5: no label",
        "line 6: no text",
        "line 7: 3 columns, not 2",
        "line 8: not UTF-8",
    ];
    assert_eq!(skipped, expected);
    assert_eq!(data.len(), 2);

    let json = "{\"text\": \"a\", \"label\": 1}\n{\"text\": 5, \"label\": 1}\n{\"text\": \"a\"}\n[]\n{\"text\": \"b\", \"label\": 2}\n";
    let skipped = fixture.open("train.jsonl", json, Classification).skipped();
    for (found, expected) in skipped.iter().zip([
        "line 2: no string \"text\"",
        "line 3: no string, number or bool \"label\"",
        "line 4: byte",
    ]) {
        assert!(found.contains(expected), "{found}");
    }

    let model = ["yes".to_owned(), "no".to_owned()];
    let other = "text\tlabel\ngood\tyes\nbad\tmaybe\nbad\tno\n";
    let data = fixture.open_as("dev.tsv", other, Classification, Some(&model)).unwrap();
    assert_eq!(all(&data), [("good".into(), 0.0), ("bad".into(), 1.0)]); // the model's order
    assert!(data.skipped()[0].ends_with("line 3: label \"maybe\" is not one of yes, no"));
}

#[test]
fn open_rejects_files_without_examples() {
    let fixture = Fixture::new(64);
    let error = |bytes: &str| fixture.error("x.tsv", bytes, Classification);
    let named = "x.tsv: line 1: no text column (looked for text_a";
    assert!(error("It is good\tpositive\n").starts_with(named));
    assert!(error("It is good\tpositive\n").ends_with("found [\"It is good\", \"positive\"]"));
    assert!(
        error("index\tsentence\n0\tA.\n").contains("no label column (looked for label, gold_label")
    );
    assert_eq!(error(""), "x.tsv: no text in it");
    assert_eq!(
        error("text\tlabel\n"),
        "x.tsv: no valid labelled text: the header is its only line"
    );
    assert_eq!(
        error("text\tlabel\na\n"),
        "x.tsv: no valid labelled text: line 2: 1 columns, not 2"
    );
    assert_eq!(
        error("text\tlabel\na\tx\nb\tx\n"),
        "x.tsv: all labels are \"x\"; two classes are needed"
    );
    assert!(fixture.error("x.tsv", b"t\0e\0x\0t\0", Classification).contains("UTF-16"));
    assert!(fixture.error("x.jsonl", "text\n", Classification).contains("line 1: byte"));
    assert!(fixture.error("x.tsv.gz", "text\tlabel\n", Classification).contains("gzip"));
    assert!(fixture.error("x.tsv", "text\tlabel\na\tx\n", HeadTask::Ctc).starts_with("head.task"));
    let small = Fixture::new(5).error("x.tsv", "text\tlabel\na\tx\n", Classification);
    assert!(small.starts_with("data.max_tokens"), "{small}");
    let gone = LabelledTexts::open(
        "/no/such",
        &fixture.config,
        Classification,
        Arc::clone(&fixture.tokenizer),
        None,
    );
    assert!(matches!(gone.unwrap_err(), Error::Io { .. }));
}

/// Expected values are those of `tokenizers` 0.23.3 with `longest_first` and RoBERTa's processor,
/// which transformers uses.
#[test]
fn truncates_longer_text_of_pair_first() {
    let fixture = Fixture::new(10);
    let file = "text\tlabel\nabcdefgh\t0\nabcdefghi\t1\n";
    let data = fixture.open("one.tsv", file, Classification);
    assert_eq!(all(&data), [("abcdefgh".into(), 0.0), ("abcdefgh".into(), 1.0)]);
    assert_eq!(data.describe(), "2 texts (0 1, 1 1, 1 truncated)");
    assert_eq!([data.size(0), data.size(1)], [10, 10]);

    let cut = |max_tokens, a: &str, b: &str| {
        let fixture = Fixture::new(max_tokens);
        let file = format!("text_a\ttext_b\tscore\n{a}\t{b}\t1\n");
        let data = fixture.open("two.tsv", file, Regression);
        assert!(data.size(0) <= max_tokens as u64);
        data.text(0).unwrap()
    };
    assert_eq!(cut(10, "abc", "uvw"), "abc | uvw");
    assert_eq!(cut(10, "abcdefgh", "uv"), "abcd | uv");
    assert_eq!(cut(10, "ab", "uvwxyz"), "ab | uvwx");
    assert_eq!(cut(10, "abcdefgh", "uvwxyz"), "abc | uvw");
    assert_eq!(cut(11, "abcdefgh", "uvwxyz"), "abcd | uvw");
    assert_eq!(cut(11, "abcdef", "uvwxyzzz"), "abc | uvwx");
    assert_eq!(cut(11, "abcdef", "uvwxyz"), "abc | uvwx");
    assert_eq!(cut(11, "abcdefgh", "uvw"), "abcd | uvw");
}

#[test]
fn split_is_stratified_and_independent_of_order() {
    let fixture = Fixture::new(64);
    // 60 of class 0, 40 of class 1, each text twice
    let line = |i: usize| format!("text {}\t{}\n", i / 2, usize::from(i >= 60));
    let open = |order: &mut dyn Iterator<Item = usize>| {
        fixture.open(
            "train.tsv",
            format!("text\tlabel\n{}", order.map(line).collect::<String>()),
            Classification,
        )
    };
    let texts = |data: &LabelledTexts| {
        let mut texts: Vec<String> = all(data).into_iter().map(|(text, _)| text).collect();
        texts.sort();
        texts
    };
    let count =
        |data: &LabelledTexts, class: f64| all(data).iter().filter(|(_, c)| *c == class).count();
    let data = open(&mut (0..100));
    let (train, held_out) = data.split(0.2, 7).unwrap();
    assert_eq!([count(&held_out, 0.0), count(&held_out, 1.0)], [12, 8]);
    assert_eq!(train.len() + held_out.len(), 100);
    assert!(texts(&held_out).iter().all(|text| !texts(&train).contains(text)));
    let (_, again) = open(&mut (0..100).rev()).split(0.2, 7).unwrap();
    assert_eq!(texts(&again), texts(&held_out));
    assert_ne!(texts(&data.split(0.2, 8).unwrap().1), texts(&held_out));

    let small = train.subsample(Amount::Each(3), 7).unwrap();
    assert_eq!([count(&small, 0.0), count(&small, 1.0)], [3, 3]);
    let large = train.subsample(Amount::Share(0.5), 7).unwrap();
    assert!(texts(&small).iter().all(|text| texts(&large).contains(text)));
    for wrong in [0.0, 1.0, -1.0, f64::NAN] {
        assert!(data.split(wrong, 1).unwrap_err().to_string().starts_with("train.held_out"));
    }
    assert!(data.subsample(Amount::Each(0), 1).is_err());
}

#[test]
fn collate_pads_and_keeps_targets() {
    let fixture = Fixture::new(64);
    let mut rng = StdRng::seed_from_u64(0);
    let mut batch = |data: &LabelledTexts| {
        let examples = (0..data.len()).map(|i| data.load(i, &mut rng).unwrap()).collect();
        data.collate(examples, &mut rng).unwrap()
    };
    let pairs = "text_a\ttext_b\tscore\na\tab\t0.5\naa\tb\t-2\na\tb\t3\n";
    let two = batch(&fixture.open("x.tsv", pairs, Regression));
    assert_eq!(two.batch.lengths(), Some(&[7, 7, 6][..]));
    let rows: Vec<Vec<i64>> = Vec::try_from(two.batch.inputs).unwrap();
    assert_eq!(rows[0], [0, 68, 2, 2, 68, 69, 2]);
    assert_eq!(rows[2], [0, 68, 2, 2, 69, 2, 1]);
    let Targets::Values(values) = two.targets else { panic!("{:?}", two.targets) };
    assert_eq!(values, Tensor::from_slice(&[0.5_f32, -2.0, 3.0]));

    let one = batch(&fixture.open("x.tsv", "text\tlabel\na\ty\nb\tx\n", Classification));
    let Targets::Classes(classes) = one.targets else { panic!("{:?}", one.targets) };
    assert_eq!((classes, one.batch.lengths()), (Tensor::from_slice(&[1_i64, 0]), None));
}

#[test]
fn finds_training_and_validation_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str| fs::write(at(name), "").unwrap();
    let error = LabelledFiles::find(dir.path()).unwrap_err().to_string();
    assert!(error.contains("holds neither train.tsv nor train.jsonl, but 0 files"), "{error}");
    write("README.txt");
    write("movieReviewSnippets_GroundTruth.txt");
    let one = LabelledFiles::find(dir.path()).unwrap();
    assert_eq!((one.train, one.validation.len()), (at("movieReviewSnippets_GroundTruth.txt"), 0));
    ["train.tsv", "dev_mismatched.tsv", "dev_matched.tsv", "test_matched.tsv"]
        .iter()
        .for_each(|n| write(n));
    let mnli = LabelledFiles::find(dir.path()).unwrap();
    assert_eq!(mnli.train, at("train.tsv"));
    assert_eq!(mnli.validation, [at("dev_matched.tsv"), at("dev_mismatched.tsv")]);
    let file = LabelledFiles::find(at("README.txt")).unwrap();
    assert_eq!(file.train, at("README.txt"));
    assert!(LabelledFiles::find(at("gone")).is_err());
}

#[test]
fn load_for_encoder_rejects_other_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let own = Tokenizer::train(["a"].into_iter(), 261).unwrap();
    own.save_with_encoder(dir.path()).unwrap();
    assert_eq!(Tokenizer::load_for_encoder(dir.path()).unwrap().fingerprint(), own.fingerprint());
    let other = Tokenizer::train(["abababab"; 9].into_iter(), 262).unwrap();
    other.save(dir.path()).unwrap();
    let error = Tokenizer::load_for_encoder(dir.path()).unwrap_err().to_string();
    assert!(error.contains("its tokenizer differs from the one it was trained with"), "{error}");
}

/// Class indices in Parquet files of the Hugging Face hub are read as class names.
#[cfg(feature = "shards")]
#[test]
fn reads_parquet_columns() {
    let fixture = Fixture::new(64);
    let parquet = concat!(env!("CARGO_MANIFEST_DIR"), "/../source/tests/fixtures/hub.parquet");
    let data = fixture.open("hub.parquet", fs::read(parquet).unwrap(), Classification);
    assert_eq!(data.labels(), ["cat", "dog", "owl"]);
    let targets: Vec<f64> = (0..12).map(|i| data.target(i)).collect();
    // Sorted by path: rows 1, 10, 11, 12, 2, ….
    assert_eq!(targets, [0., 0., 1., 2., 1., 2., 0., 1., 2., 0., 1., 2.]);
    assert_eq!((data.len(), data.skipped().len()), (12, 0));
    assert!(data.name(3).ends_with("hub.parquet, hub.parquet/12.text"), "{}", data.name(3));
}
