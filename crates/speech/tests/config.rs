//! Default settings.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use data2vec_speech::{SpeechDataConfig, SpeechMaskConfig, WaveEncoderConfig};
use serde::de::DeserializeOwned;

fn section<T: DeserializeOwned>(name: &str) -> T {
    let recipe: toml::Table = include_str!("../../../recipes/speech.toml").parse().unwrap();
    recipe[name].clone().try_into().unwrap()
}

#[test]
fn defaults_match_base_recipe() {
    assert_eq!(WaveEncoderConfig::default(), section("features"));
    assert_eq!(SpeechDataConfig::default(), section("data"));
    assert_eq!(SpeechMaskConfig::default(), section("mask"));
}
