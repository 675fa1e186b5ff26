//! Default settings.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use data2vec_nlp::{LabelledTextConfig, TextDataConfig, TextMaskConfig, TokenEncoderConfig};
use serde::de::DeserializeOwned;

fn section<T: DeserializeOwned>(recipe: &str, name: &str) -> T {
    let recipe: toml::Table = recipe.parse().unwrap();
    recipe[name].clone().try_into().unwrap()
}

#[test]
fn defaults_match_base_recipe() {
    let recipe = include_str!("../../../recipes/nlp.toml");
    assert_eq!(TokenEncoderConfig::default(), section(recipe, "features"));
    assert_eq!(TextDataConfig::default(), section(recipe, "data"));
    assert_eq!(TextMaskConfig::default(), section(recipe, "mask"));
}

#[test]
fn labelled_default_matches_finetune_recipe() {
    let recipe = include_str!("../../../recipes/finetune-nlp-cola.toml");
    assert_eq!(LabelledTextConfig::default(), section(recipe, "data"));
}
