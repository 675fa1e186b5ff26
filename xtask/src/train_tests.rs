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

struct Pretend;

impl Files for Pretend {
    fn recipes(&self) -> Vec<String> {
        ["finetune-speech-tiny", "speech", "speech-2.0", "speech-tiny", "vision-tiny"]
            .map(String::from)
            .to_vec()
    }

    fn exists(&self, path: &Path) -> bool {
        ["/corpus", "mine/own.toml", "recipes/speech-tiny.toml"]
            .iter()
            .any(|there| path == Path::new(there))
    }
}

fn parse(line: &str) -> Train {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        train: Train,
    }
    Cli::parse_from(std::iter::once("train").chain(line.split_whitespace())).train
}

fn plan_for(line: &str) -> Result<(String, Data, String)> {
    let plan = plan(Path::new("/repo"), &parse(line), &Catalog::parse(CATALOG).unwrap(), &Pretend)?;
    Ok((plan.recipe.display().to_string(), plan.data, plan.out.display().to_string()))
}

fn complaint(line: &str) -> String {
    format!("{:#}", plan_for(line).unwrap_err())
}

#[test]
fn defaults_depend_on_what_is_given() {
    let small = || Data::Named(String::from("small"));
    let corpus = || Data::Path(PathBuf::from("/corpus"));
    let case = |line: &str, recipe: &str, data: Data, out: &str| {
        assert_eq!(plan_for(line).unwrap(), (recipe.to_owned(), data, out.to_owned()), "{line}");
    };
    case("speech", "/repo/recipes/speech-tiny.toml", small(), "/repo/runs/speech-tiny");
    case("speech --data /corpus", "/repo/recipes/speech.toml", corpus(), "/repo/runs/speech");
    let pattern = "/shards/x-{000..017}.tar";
    let shards = Data::Path(PathBuf::from(pattern));
    let line = format!("speech --data {pattern}");
    case(&line, "/repo/recipes/speech.toml", shards, "/repo/runs/speech");
    case("speech --data small", "/repo/recipes/speech.toml", small(), "/repo/runs/speech");
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
fn mistakes_are_named_with_what_there_is() {
    assert!(complaint("speach").contains("did you mean speech? There are: speech, vision"));
    assert!(complaint("speech --recipe speech-tny").contains("did you mean speech-tiny?"));
    assert!(complaint("speech --recipe none.toml").contains("there are: speech, speech-2.0"));
    assert!(complaint("speech --data smal").contains("did you mean small?"));
    assert!(complaint("speech --data /no/such").contains("no such folder or file"));
    // Not the start of a longer word.
    assert!(complaint("spee").contains("no recipes"));
    assert!(complaint("vision").contains("no data set of the catalog is the default for vision"));
    // Recipes of fine-tuning are no modality, and not to be found by name.
    assert!(
        complaint("finetune").contains("no recipes for \"finetune\"; there are: speech, vision")
    );
    assert!(complaint("speech --recipe finetune-speech-tiny").contains("no recipe"));
    assert!(complaint("vision --data /corpus").contains("no recipe \"vision\""));
}

#[test]
fn everything_reaches_the_program() {
    let line = "speech --device cuda:1 --steps 5 --resume --set a.b=1 --set c=[2] -- --more x";
    let plan = Plan { recipe: "r.toml".into(), data: Data::Path("/d".into()), out: "o".into() };
    let arguments = arguments("pretrain", &plan, Path::new("/d"), &parse(line).run, &[]);
    let words: Vec<&str> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
    let wanted = "pretrain r.toml --data /d --out o --device cuda:1 --steps 5 --resume --set a.b=1 --set c=[2] --more x";
    assert_eq!(words.join(" "), wanted);
}
