#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;

use super::*;

const CATALOG: &str = r#"
[[set]]
name = "small"
modality = "speech"
default_for = "speech"
licence = "MIT"
description = "d"
bytes = 1
[[set.source]]
name = "s"
[[set.source.archive]]
url = "http://x"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
take = [{ from = "a/", to = "" }]
"#;

struct FakeFileSystem;

impl FileSystem for FakeFileSystem {
    fn recipes(&self) -> Vec<String> {
        ["finetune-speech-tiny", "speech", "speech-2.0", "speech-tiny", "vision-tiny"]
            .map(String::from)
            .to_vec()
    }

    fn exists(&self, path: &Path) -> bool {
        ["/corpus", "mine/own.toml", "recipes/speech-tiny.toml"]
            .iter()
            .any(|known| path == Path::new(known))
    }
}

fn parse(line: &str) -> TrainArgs {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        train: TrainArgs,
    }
    Cli::parse_from(std::iter::once("train").chain(line.split_whitespace())).train
}

fn plan_for(line: &str) -> Result<(String, DataLocation, String)> {
    let plan =
        plan(Path::new("/repo"), &parse(line), &Catalog::parse(CATALOG).unwrap(), &FakeFileSystem)?;
    Ok((plan.recipe.display().to_string(), plan.data, plan.out.display().to_string()))
}

fn error_for(line: &str) -> String {
    format!("{:#}", plan_for(line).unwrap_err())
}

#[test]
fn resolves_recipe_data_and_run_directory() {
    let small = || DataLocation::Catalog(String::from("small"));
    let corpus = || DataLocation::Path(PathBuf::from("/corpus"));
    let case = |line: &str, recipe: &str, data: DataLocation, out: &str| {
        assert_eq!(plan_for(line).unwrap(), (recipe.to_owned(), data, out.to_owned()), "{line}");
    };
    case("speech", "/repo/recipes/speech-tiny.toml", small(), "/repo/runs/speech-tiny");
    case(
        "speech --data /corpus",
        "/repo/recipes/speech.toml",
        corpus(),
        "/repo/runs/speech-corpus",
    );
    let pattern = "/shards/x-{000..017}.tar";
    let shards = DataLocation::Path(PathBuf::from(pattern));
    let line = format!("speech --data {pattern}");
    case(&line, "/repo/recipes/speech.toml", shards, "/repo/runs/speech-x--000..017");
    case("speech --data small", "/repo/recipes/speech.toml", small(), "/repo/runs/speech-small");
    case(
        "speech --recipe speech-2.0",
        "/repo/recipes/speech-2.0.toml",
        small(),
        "/repo/runs/speech-2.0",
    );
    case("speech --recipe mine/own.toml", "mine/own.toml", small(), "/repo/runs/own");
    case(
        "speech --recipe speech-tiny.toml",
        "/repo/recipes/speech-tiny.toml",
        small(),
        "/repo/runs/speech-tiny",
    );
    case(
        "speech --recipe recipes/speech-tiny.toml --out o",
        "recipes/speech-tiny.toml",
        small(),
        "o",
    );
}

#[test]
fn run_directories_are_named_after_the_data() {
    let cases = [
        ("/corpora/My Talks/", "-My-Talks"),
        ("films.tsv", "-films"),
        ("s3://bucket/a/shard-{0..9}.tar", "-shard--0..9"),
        ("..", ""),
    ];
    for (data, expected) in cases {
        assert_eq!(data_name(data), expected, "{data}");
    }
}

#[test]
fn errors_suggest_known_names() {
    assert!(error_for("speach").contains("did you mean speech? Known: speech, vision"));
    assert!(error_for("speech --recipe speech-tny").contains("did you mean speech-tiny?"));
    assert!(error_for("speech --recipe none.toml").contains("known: speech, speech-2.0"));
    assert!(error_for("speech --data smal").contains("did you mean small?"));
    assert!(error_for("speech --data /no/such").contains("no such file or directory"));
    // A prefix of a modality is not a match.
    assert!(error_for("spee").contains("no recipes"));
    assert!(error_for("vision").contains("no default data set for vision"));
    // Fine-tuning recipes are neither a modality nor found by name.
    assert!(error_for("finetune").contains("modality \"finetune\"; known: speech, vision"));
    assert!(error_for("speech --recipe finetune-speech-tiny").contains("unknown recipe"));
    assert!(error_for("vision --data /corpus").contains("unknown recipe \"vision\""));
}

#[test]
fn passes_all_arguments_to_the_program() {
    let line = "speech --device cuda:1 --steps 5 --resume --set a.b=1 --set c=[2] -- --more x";
    let plan =
        Plan { recipe: "r.toml".into(), data: DataLocation::Path("/d".into()), out: "o".into() };
    let arguments = program_args("pretrain", &plan, Path::new("/d"), &parse(line).run, &[]);
    let words: Vec<&str> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
    let expected = "pretrain r.toml --data /d --out o --device cuda:1 --steps 5 --resume --set a.b=1 --set c=[2] --more x";
    assert_eq!(words.join(" "), expected);
}
