//! Every recipe of the repository is complete, valid, and of the published size.

use std::path::{Path, PathBuf};

use anyhow::Result;
use data2vec_core::io::toml::toml_error;
use data2vec_core::{
    AdamWConfig, Data2Vec, DecoderConfig, EmaConfig, FinetuneModality, Modality, ModelConfig,
    RegressionLoss, Schedule, TargetConfig, TransformerConfig,
};
use data2vec_nlp::Nlp;
use data2vec_speech::Speech;
use data2vec_tests::fuzz;
use data2vec_train::recipe::{FinetuneRecipe, Recipe, read};
use data2vec_vision::Vision;
use tch::Device;
use toml::Table;

/// Number of parameters of the encoder and of everything trained, counted on the reference's models.
/// The latter include 1.0's mask token here; for 1.0's images, both include our bias of keys.
const PUBLISHED: [(&str, usize, usize); 12] = [
    ("vision", 85_647_360, 88_233_216),
    ("vision-large", 303_099_904, 309_067_776),
    ("vision-huge", 630_435_840, 637_075_712),
    ("vision-v1", 85_673_040, 86_265_936),
    ("vision-v1-large", 303_158_720, 304_211_392),
    ("speech", 93_163_532, 93_783_308),
    ("speech-large", 313_275_408, 315_184_144),
    ("speech-v1", 93_163_520, 93_754_880),
    ("speech-v1-large", 313_275_392, 314_326_016),
    ("nlp", 124_054_272, 152_961_792),
    ("nlp-large", 354_309_120, 385_379_584),
    ("nlp-v1", 124_054_272, 126_415_872),
];

/// Counts the parameters of encoder and model at the recipe's full size. Blocks are alike, so two
/// shallow models suffice, without the memory of a deep one.
fn parameters<M: Modality>(recipe: &Recipe<M>) -> Result<(usize, usize)> {
    let at = |depth: usize| {
        let mut config = recipe.model();
        config.transformer.depth = depth;
        config.target.top_k = 1;
        let model = Data2Vec::<M::Encoder>::new(
            config,
            M::masking(&recipe.mask, &recipe.features)?,
            Device::Cpu,
            1,
        )?;
        let (all, encoder) = model.parameters();
        anyhow::Ok((encoder, all))
    };
    let (one, two, depth) = (at(1)?, at(2)?, recipe.transformer.depth);
    let full = |one: usize, two: usize| one + (depth - 1) * (two - one);
    Ok((full(one.0, two.0), full(one.1, two.1)))
}

fn check<M: Modality>(path: &Path, table: Table) -> Result<(usize, usize)> {
    let recipe = Recipe::<M>::from_table(path, table)?;
    recipe.schedule.validate(recipe.train.steps)?;
    recipe.target.validate(&recipe.transformer)?;
    recipe.optimizer.validate()?;
    parameters(&recipe)
}

#[test]
fn recipes_are_valid_and_of_the_published_sizes() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let (mut sized, mut finetuned) = (0, 0);
    for entry in std::fs::read_dir(&dir).expect("the directory of recipes") {
        let path = entry.expect("a recipe").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let table = read(&path, None, &[]).expect("TOML");
        if name.starts_with("finetune-") {
            let valid = match table["modality"].as_str().expect("a modality") {
                "speech" => FinetuneRecipe::<Speech>::from_table(&path, table).map(drop),
                "vision" => FinetuneRecipe::<Vision>::from_table(&path, table).map(drop),
                "nlp" => FinetuneRecipe::<Nlp>::from_table(&path, table).map(drop),
                other => panic!("{name}: {other} has no test"),
            };
            valid.unwrap_or_else(|e| panic!("{name}: {e:#}"));
            finetuned += 1;
            continue;
        }
        let counts = match table["modality"].as_str().expect("a modality") {
            "speech" => check::<Speech>(&path, table),
            "vision" => check::<Vision>(&path, table),
            "nlp" => check::<Nlp>(&path, table),
            other => panic!("{name}: {other} has no test"),
        };
        let counts = counts.unwrap_or_else(|e| panic!("{name}: {e:#}"));
        if let Some((_, encoder, all)) = PUBLISHED.iter().find(|(n, ..)| *n == name) {
            assert_eq!(counts, (*encoder, *all), "{name}");
            sized += 1;
        }
    }
    assert_eq!(sized, PUBLISHED.len(), "every published size has its recipe");
    assert!(finetuned > 20, "{finetuned} recipes for fine-tuning");
}

/// Parses the bytes of a recipe; returns whether it is valid.
fn parse(bytes: &[u8]) -> bool {
    fn either<M: FinetuneModality>(path: &Path, table: Table) -> bool {
        match table.contains_key("tune") {
            true => FinetuneRecipe::<M>::from_table(path, table).is_ok(),
            false => Recipe::<M>::from_table(path, table).is_ok(),
        }
    }
    let (Ok(text), path) = (std::str::from_utf8(bytes), PathBuf::from("recipe.toml")) else {
        return false;
    };
    let table = match text.parse::<Table>() {
        Ok(table) => table,
        Err(error) => {
            assert!(toml_error(text, &error).starts_with("line "));
            return false;
        }
    };
    match table.get("modality").and_then(toml::Value::as_str) {
        Some("speech") => either::<Speech>(&path, table),
        Some("vision") => either::<Vision>(&path, table),
        Some("nlp") => either::<Nlp>(&path, table),
        _ => false,
    }
}

#[test]
fn mutations_of_recipes() {
    fuzz::fuzz("recipe", parse);
}

/// The defaults of settings are those of 2.0 Base for speech.
#[test]
fn defaults_are_those_of_the_base_recipe() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../recipes/speech.toml");
    let recipe = Recipe::<Speech>::from_table(&path, read(&path, None, &[]).expect("TOML"));
    let recipe = recipe.expect("a recipe");
    assert_eq!(recipe.model, ModelConfig::default());
    assert_eq!(recipe.transformer, TransformerConfig::default());
    assert_eq!(recipe.target, TargetConfig::default());
    assert_eq!(recipe.loss, RegressionLoss::default());
    assert_eq!(recipe.decoder, DecoderConfig::default());
    assert_eq!(recipe.ema, EmaConfig::default());
    assert_eq!(recipe.optimizer, AdamWConfig::default());
    assert_eq!(recipe.schedule, Schedule::default());
}
