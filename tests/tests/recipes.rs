//! Every recipe: complete, possible, and of the size that it says.

use std::fs;
use std::path::PathBuf;

use toml::Table;

fn recipes() -> Vec<(String, Table)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("the folder of recipes") {
        let path = entry.expect("a recipe").path();
        let text = fs::read_to_string(&path).expect("text");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(text.starts_with("# "), "{name} says first what it is");
        let verbs: &[&str] = match name.starts_with("finetune-") {
            true => &["cargo xtask finetune ", "data2vec finetune recipes/"],
            false => &["cargo xtask train "],
        };
        let told = verbs.iter().any(|verb| text.contains(verb));
        assert!(told, "{name} says how to run it");
        all.push((name, text.parse().expect("TOML")));
    }
    assert!(all.len() >= 5);
    all
}

#[test]
fn names_tell_the_modality() {
    for (name, recipe) in recipes() {
        let modality = recipe["modality"].as_str().expect("a modality").to_owned();
        let name = name.strip_prefix("finetune-").unwrap_or(&name);
        assert!(name == modality || name.starts_with(&format!("{modality}-")), "{name}");
    }
}
