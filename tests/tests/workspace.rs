//! What ARCHITECTURE.md says of the workspace itself: invariants 1 to 3, 12 and 14.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files below `dir` with one of the extensions, build results left out.
fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && !["target", "runs", "sets"].contains(&name.as_str()) {
                found.extend(files(&path, extensions));
            }
        } else if extensions.iter().any(|e| name.ends_with(e)) {
            found.push(path);
        }
    }
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Lines of a Rust file that are no comment.
fn code(path: &Path) -> Vec<String> {
    let text = read(path);
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.map(|line| line.split(" // ").next().unwrap_or_default().to_owned()).collect()
}

fn dependencies(package: &str) -> Vec<String> {
    let manifest = read(&root().join(package).join("Cargo.toml"));
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let name = |line: &str| Some(line.split(['=', '.', ' ']).next()?.trim().to_owned());
    section.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).filter_map(name).collect()
}

#[test]
fn dependencies_point_one_way() {
    let of = |package: &str| -> Vec<String> {
        let all = dependencies(package);
        assert!(!all.is_empty(), "{package} has dependencies");
        all.into_iter().filter(|d| d.starts_with("data2vec")).collect()
    };
    assert!(of("crates/torch-ext").is_empty());
    assert_eq!(of("crates/core"), ["data2vec-torch-ext"]);
    assert!(of("crates/source").is_empty());
    assert!(!dependencies("crates/source").iter().any(|d| d == "tch"), "it needs no LibTorch");
    for modality in ["speech", "vision", "nlp"] {
        if root().join("crates").join(modality).join("Cargo.toml").exists() {
            let mut known = of(&format!("crates/{modality}"));
            known.retain(|krate| krate != "data2vec-source");
            assert_eq!(known, ["data2vec-core"], "{modality}");
        }
    }
    assert!(of("xtask").is_empty(), "xtask runs before LibTorch exists");
    assert!(!dependencies("xtask").iter().any(|d| d == "tch" || d == "torch-sys"));
}

#[test]
fn core_names_no_modality() {
    // "Text" is also what a file holds.
    let words = ["speech", "audio", "wave", "vision", "image", "pixel", "nlp", "word"];
    for path in files(&root().join("crates/core/src"), &[".rs"]) {
        for line in code(&path) {
            // Names, not what error messages hold.
            let names = line.split('"').step_by(2).collect::<String>().to_lowercase();
            let parts: Vec<&str> = names.split(|c: char| !c.is_alphanumeric()).collect();
            let named = words.iter().find(|w| parts.contains(w));
            assert!(named.is_none(), "{}: {line}", path.display());
        }
    }
}

#[test]
fn unsafe_is_in_torch_ext_alone() {
    let mut seen = 0;
    for path in files(&root(), &[".rs"]) {
        let inside = path.to_string_lossy().contains("crates/torch-ext/");
        if path.ends_with("tests/tests/workspace.rs") {
            continue;
        }
        for line in code(&path) {
            let bare = line
                .split(|c: char| !c.is_alphanumeric() && !"_-".contains(c))
                .any(|w| w == "unsafe");
            seen += usize::from(bare && inside);
            assert!(!bare || inside, "{}: {line}", path.display());
        }
    }
    assert!(seen > 5, "torch-ext has some");
}

#[test]
fn only_programs_print() {
    for krate in ["torch-ext", "core", "source", "speech", "vision", "nlp"] {
        for path in files(&root().join("crates").join(krate).join("src"), &[".rs"]) {
            for line in code(&path) {
                let prints =
                    ["println!", "eprintln!", "print!(", "dbg!"].iter().any(|p| line.contains(p));
                assert!(!prints, "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn libtorch_version_is_written_once_and_is_the_one_that_runs() {
    let version = data2vec_torch_ext::libtorch_version();
    let quoted = format!("\"{version}\"");
    let mut places = Vec::new();
    for path in files(&root(), &[".rs", ".toml", ".sh"]) {
        if code(&path).iter().any(|line| line.contains(&quoted)) {
            places.push(path);
        }
    }
    assert_eq!(places.len(), 1, "{version} is in {places:?}");
    assert!(places[0].to_string_lossy().contains("xtask"), "{places:?}");
}

#[test]
fn files_stay_readable() {
    for path in files(&root(), &[".rs", ".cpp", ".py"]) {
        let lines = read(&path).lines().count();
        assert!(
            lines <= 450,
            "{} has {lines} lines: look for the seam that splits it",
            path.display()
        );
    }
}
