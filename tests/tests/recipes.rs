//! The header and the file name of every recipe describe it.

use std::fs;
use std::path::PathBuf;

use toml::Table;

/// Reads the text of every recipe, by name.
fn recipes() -> Vec<(String, String)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let paths = fs::read_dir(dir).expect("recipes").map(|entry| entry.expect("a recipe").path());
    let read = |path: PathBuf| {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        (name, fs::read_to_string(&path).expect("UTF-8"))
    };
    let recipes: Vec<_> = paths.map(read).collect();
    assert!(recipes.len() >= 5);
    recipes
}

#[test]
fn headers_have_a_summary_and_the_command() {
    for (name, text) in recipes() {
        assert!(text.starts_with("# "), "{name} has no summary");
        let commands: &[&str] = match name.starts_with("finetune-") {
            true => &["cargo xtask finetune ", "data2vec finetune recipes/"],
            false => &["cargo xtask train "],
        };
        assert!(commands.iter().any(|command| text.contains(command)), "{name} has no command");
    }
}

#[test]
fn names_begin_with_the_modality() {
    for (name, text) in recipes() {
        let recipe: Table = text.parse().expect("TOML");
        let modality = recipe["modality"].as_str().expect("a modality");
        let name = name.strip_prefix("finetune-").unwrap_or(&name);
        assert!(name == modality || name.starts_with(&format!("{modality}-")), "{name}");
    }
}
