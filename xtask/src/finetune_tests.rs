#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;

use super::*;
use crate::train::DataLocation;

const SET: &str = r#"
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

fn catalog() -> Catalog {
    let plain = "[[set]]\nname = \"addresses\"\nmodality = \"nlp\"\ndefault_for = \"nlp\"";
    let labelled =
        "[[set]]\nname = \"reviews\"\nmodality = \"nlp\"\ndefault_for_finetune = \"nlp\"";
    Catalog::parse(&format!("{plain}{SET}{labelled}{SET}")).unwrap()
}

struct FakeFileSystem {
    pretrained: bool,
}

impl FileSystem for FakeFileSystem {
    fn recipes(&self) -> Vec<String> {
        [
            "finetune-nlp",
            "finetune-nlp-tiny",
            "finetune-vision-tiny",
            "nlp",
            "nlp-tiny",
            "speech-tiny",
        ]
        .map(String::from)
        .to_vec()
    }

    fn exists(&self, path: &Path) -> bool {
        let tiny = Path::new("/repo/runs/nlp-tiny/encoder/encoder.toml");
        let others = ["/corpus", "mine/encoder.toml"];
        (self.pretrained && path == tiny) || others.iter().any(|known| path == Path::new(known))
    }
}

fn parse(line: &str) -> FinetuneArgs {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        finetune: FinetuneArgs,
    }
    Cli::parse_from(std::iter::once("finetune").chain(line.split_whitespace())).finetune
}

fn plan_for(line: &str, pretrained: bool) -> Result<Plan> {
    plan(Path::new("/repo"), &parse(line), &catalog(), &FakeFileSystem { pretrained })
}

fn catalog_set(name: &str) -> DataLocation {
    DataLocation::Catalog(name.to_owned())
}

#[test]
fn pretrains_missing_encoder() {
    let finetune = train::Plan {
        recipe: "/repo/recipes/finetune-nlp-tiny.toml".into(),
        data: catalog_set("reviews"),
        out: "/repo/runs/finetune-nlp-tiny".into(),
    };
    let pretrain = train::Plan {
        recipe: "/repo/recipes/nlp-tiny.toml".into(),
        data: catalog_set("addresses"),
        out: "/repo/runs/nlp-tiny".into(),
    };
    let encoder = PathBuf::from("/repo/runs/nlp-tiny/encoder");
    let mut expected = Plan { pretrain: Some(pretrain), encoder, finetune };
    assert_eq!(plan_for("nlp", false).unwrap(), expected);
    expected.pretrain = None;
    assert_eq!(plan_for("nlp", true).unwrap(), expected);
    expected.encoder = "mine".into();
    assert_eq!(plan_for("nlp --encoder mine", false).unwrap(), expected);
    let data = plan_for("nlp --data /corpus --recipe finetune-nlp", true).unwrap().finetune;
    assert_eq!(data.data, DataLocation::Path("/corpus".into()));
    assert_eq!(data.recipe, Path::new("/repo/recipes/finetune-nlp.toml"));
}

#[test]
fn pretrains_speech_longer_than_the_quick_start() {
    let run = |line: &str| pretrain_args(Path::new("/repo"), &parse(line)).run;
    let speech = run("speech --device cpu --steps 7");
    assert_eq!((speech.steps, speech.device.as_deref()), (Some(1500), Some("cpu")));
    assert_eq!(speech.out.unwrap(), Path::new("/repo/runs/speech-longer"));
    assert_eq!((run("vision").steps, run("vision").out), (None, None));
}

#[test]
fn compared_runs_have_different_directories() {
    let out = |line: &str| plan_for(line, true).unwrap().finetune.out;
    assert_eq!(out("nlp --from-scratch"), Path::new("/repo/runs/finetune-nlp-tiny-from-scratch"));
    assert_eq!(out("nlp --seed 3"), Path::new("/repo/runs/finetune-nlp-tiny-seed-3"));
    assert_eq!(out("nlp --seed 3 --out o"), Path::new("o"));
}

#[test]
fn errors_suggest_known_names() {
    let error_for = |line: &str| format!("{:#}", plan_for(line, true).unwrap_err());
    assert!(error_for("npl").contains("did you mean nlp? Known: nlp, vision"));
    assert!(error_for("speech").contains("no recipes for modality \"speech\""));
    assert!(error_for("nlp --recipe finetune-nlp-tny").contains("did you mean finetune-nlp-tiny?"));
    assert!(error_for("nlp --recipe nlp-tiny").contains("known: finetune-nlp, finetune-nlp-tiny"));
    assert!(
        error_for("nlp --encoder none")
            .contains("none: contains no encoder.toml; `cargo xtask train nlp`")
    );
    assert!(error_for("vision").contains("no default data set to fine-tune vision"));
    assert!(error_for("nlp --data reviws").contains("did you mean reviews?"));
}

#[test]
fn passes_all_arguments_to_the_program() {
    let line =
        "nlp --encoder e --from-scratch --seed 4 --device cpu --steps 5 --set a.b=1 -- --more x";
    let args = parse(line);
    let plan = train::Plan { recipe: "r.toml".into(), data: catalog_set("d"), out: "o".into() };
    let own = finetune_args(&args, Path::new("e"));
    let arguments = train::program_args("finetune", &plan, Path::new("/d"), &args.run, &own);
    let words: Vec<&str> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
    let expected = "finetune r.toml --encoder e --from-scratch --set seed=4 --data /d --out o --device cpu --steps 5 --set a.b=1 --more x";
    assert_eq!(words.join(" "), expected);
    // Pretraining gets only the device.
    let run = pretrain_args(Path::new("/repo"), &args).run;
    assert_eq!((run.device.as_deref(), run.steps, run.set.len()), (Some("cpu"), None, 0));
}
