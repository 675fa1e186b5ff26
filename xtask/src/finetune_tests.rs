#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;

use super::*;
use crate::train::Data;

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

struct Pretend {
    pretrained: bool,
}

impl Files for Pretend {
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
        (self.pretrained && path == tiny) || others.iter().any(|there| path == Path::new(there))
    }
}

fn parse(line: &str) -> Finetune {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        finetune: Finetune,
    }
    Cli::parse_from(std::iter::once("finetune").chain(line.split_whitespace())).finetune
}

fn plan_for(line: &str, pretrained: bool) -> Result<Plan> {
    plan(Path::new("/repo"), &parse(line), &catalog(), &Pretend { pretrained })
}

fn named(name: &str) -> Data {
    Data::Named(name.to_owned())
}

#[test]
fn an_encoder_is_pretrained_where_there_is_none() {
    let finetune = train::Plan {
        recipe: "/repo/recipes/finetune-nlp-tiny.toml".into(),
        data: named("reviews"),
        out: "/repo/runs/finetune-nlp-tiny".into(),
    };
    let pretrain = train::Plan {
        recipe: "/repo/recipes/nlp-tiny.toml".into(),
        data: named("addresses"),
        out: "/repo/runs/nlp-tiny".into(),
    };
    let encoder = PathBuf::from("/repo/runs/nlp-tiny/encoder");
    let mut wanted = Plan { pretrain: Some(pretrain), encoder, finetune };
    assert_eq!(plan_for("nlp", false).unwrap(), wanted);
    wanted.pretrain = None;
    assert_eq!(plan_for("nlp", true).unwrap(), wanted);
    wanted.encoder = "mine".into();
    assert_eq!(plan_for("nlp --encoder mine", false).unwrap(), wanted);
    let data = plan_for("nlp --data /corpus --recipe finetune-nlp", true).unwrap().finetune;
    assert_eq!(data.data, Data::Path("/corpus".into()));
    assert_eq!(data.recipe, Path::new("/repo/recipes/finetune-nlp.toml"));
}

#[test]
fn speech_is_pretrained_for_longer_than_its_quick_start() {
    let run = |line: &str| pretraining(Path::new("/repo"), &parse(line)).run;
    let speech = run("speech --device cpu --steps 7");
    assert_eq!((speech.steps, speech.device.as_deref()), (Some(1500), Some("cpu")));
    assert_eq!(speech.out.unwrap(), Path::new("/repo/runs/speech-longer"));
    assert_eq!((run("vision").steps, run("vision").out), (None, None));
}

#[test]
fn runs_to_compare_have_their_own_folders() {
    let out = |line: &str| plan_for(line, true).unwrap().finetune.out;
    assert_eq!(out("nlp --from-scratch"), Path::new("/repo/runs/finetune-nlp-tiny-from-scratch"));
    assert_eq!(out("nlp --seed 3"), Path::new("/repo/runs/finetune-nlp-tiny-seed-3"));
    assert_eq!(out("nlp --seed 3 --out o"), Path::new("o"));
}

#[test]
fn mistakes_are_named_with_what_there_is() {
    let complaint = |line: &str| format!("{:#}", plan_for(line, true).unwrap_err());
    assert!(complaint("npl").contains("did you mean nlp? There are: nlp, vision"));
    assert!(complaint("speech").contains("no recipes for \"speech\""));
    assert!(complaint("nlp --recipe finetune-nlp-tny").contains("did you mean finetune-nlp-tiny?"));
    assert!(
        complaint("nlp --recipe nlp-tiny").contains("there are: finetune-nlp, finetune-nlp-tiny")
    );
    assert!(
        complaint("nlp --encoder none")
            .contains("none: no encoder.toml in it; `cargo xtask train nlp`")
    );
    assert!(
        complaint("vision")
            .contains("no labelled data set of the catalog is the default for vision")
    );
    assert!(complaint("nlp --data reviws").contains("did you mean reviews?"));
}

#[test]
fn everything_reaches_the_program() {
    let line =
        "nlp --encoder e --from-scratch --seed 4 --device cpu --steps 5 --set a.b=1 -- --more x";
    let asked = parse(line);
    let plan = train::Plan { recipe: "r.toml".into(), data: named("d"), out: "o".into() };
    let own = own_arguments(&asked, Path::new("e"));
    let arguments = train::arguments("finetune", &plan, Path::new("/d"), &asked.run, &own);
    let words: Vec<&str> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
    let wanted = "finetune r.toml --encoder e --from-scratch --set seed=4 --data /d --out o --device cpu --steps 5 --set a.b=1 --more x";
    assert_eq!(words.join(" "), wanted);
    // Pretraining gets the device and nothing else.
    let run = pretraining(Path::new("/repo"), &asked).run;
    assert_eq!((run.device.as_deref(), run.steps, run.set.len()), (Some("cpu"), None, 0));
}
