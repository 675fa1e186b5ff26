//! Default settings.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use data2vec_vision::{PatchEncoderConfig, VisionDataConfig, VisionMaskConfig};
use serde::de::DeserializeOwned;

fn section<T: DeserializeOwned>(name: &str) -> T {
    let recipe: toml::Table = include_str!("../../../recipes/vision.toml").parse().unwrap();
    recipe[name].clone().try_into().unwrap()
}

#[test]
fn defaults_match_base_recipe() {
    assert_eq!(PatchEncoderConfig::default(), section("features"));
    assert_eq!(VisionDataConfig::default(), section("data"));
    assert_eq!(VisionMaskConfig::default(), section("mask"));
}
