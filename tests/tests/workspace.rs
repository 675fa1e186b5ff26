//! Rules of ARCHITECTURE.md about the workspace: dependencies, names, printing, `unsafe`, file sizes.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns all files below `dir` with one of the extensions, except build results and data.
fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.expect("a readable directory").path();
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

/// Returns the lines of a Rust file without comments.
fn code(path: &Path) -> Vec<String> {
    let text = read(path);
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.map(|line| line.split(" // ").next().unwrap_or_default().to_owned()).collect()
}

/// Returns the names of the normal dependencies of a package.
fn dependencies(package: &str) -> Vec<String> {
    let manifest = read(&root().join(package).join("Cargo.toml"));
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let name = |line: &str| Some(line.split(['=', '.', ' ']).next()?.trim().to_owned());
    section.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).filter_map(name).collect()
}

/// Returns the dependencies of a package within the workspace.
fn own_dependencies(package: &str) -> Vec<String> {
    let all = dependencies(package);
    assert!(!all.is_empty(), "{package} has dependencies");
    all.into_iter().filter(|name| name.starts_with("data2vec")).collect()
}

#[test]
fn dependencies_point_one_way() {
    assert!(own_dependencies("crates/torch-ext").is_empty());
    assert_eq!(own_dependencies("crates/core"), ["data2vec-torch-ext"]);
    assert!(own_dependencies("crates/source").is_empty());
    assert!(!dependencies("crates/source").iter().any(|name| name == "tch"), "no LibTorch");
    for modality in ["speech", "vision", "nlp"] {
        let mut own = own_dependencies(&format!("crates/{modality}"));
        own.retain(|name| name != "data2vec-source");
        assert_eq!(own, ["data2vec-core"], "{modality}");
    }
    assert_eq!(own_dependencies("crates/train"), ["data2vec-core", "data2vec-torch-ext"]);
    assert!(own_dependencies("xtask").is_empty(), "xtask runs before LibTorch exists");
    assert!(!dependencies("xtask").iter().any(|name| name == "tch" || name == "torch-sys"));
}

#[test]
fn only_the_program_depends_on_all_crates() {
    let mut all = Vec::new();
    for entry in fs::read_dir(root().join("crates")).expect("crates") {
        let dir = entry.expect("a crate").file_name().to_string_lossy().into_owned();
        if dir != "cli" {
            let own = own_dependencies(&format!("crates/{dir}"));
            assert!(!own.iter().any(|name| name == "data2vec-train"), "{dir}");
            all.push(format!("data2vec-{dir}"));
        }
    }
    let mut cli = own_dependencies("crates/cli");
    cli.sort();
    all.sort();
    assert_eq!(cli, all);
}

/// Returns the length of the string or character literal at the start of `code`; `None` at others.
fn literal_len(code: &str) -> Option<usize> {
    if let Some(rest) = code.strip_prefix('\'') {
        // A lifetime has no closing quote after one character.
        let mut chars = rest.char_indices();
        return match chars.next()? {
            (_, '\\') => Some(4 + rest[2..].find('\'')?),
            _ => chars.next().filter(|&(_, c)| c == '\'').map(|(at, _)| at + 2),
        };
    }
    let prefix = code.len() - code.trim_start_matches(['b', 'c']).len();
    let body = &code[prefix..];
    if let Some(rest) = body.strip_prefix('r') {
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let content = rest[hashes..].strip_prefix('"')?;
        return Some(prefix + 2 + hashes + content.find(&end)? + end.len());
    }
    let content = body.strip_prefix('"')?;
    let mut is_escaped = false;
    for (at, c) in content.char_indices() {
        match c {
            '"' if !is_escaped => return Some(prefix + at + 2),
            _ => is_escaped = c == '\\' && !is_escaped,
        }
    }
    None
}

/// Returns the identifiers of Rust code, without those in comments and literals.
fn identifiers(code: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), code);
    while let Some(first) = rest.chars().next() {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(len) = literal_len(rest) {
            len
        } else if is_part(first) {
            let len = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            found.push(&rest[..len]);
            len
        } else {
            first.len_utf8()
        };
        rest = &rest[len..];
    }
    found
}

/// Splits a `CamelCase` or `snake_case` identifier into lowercase words.
fn words(identifier: &str) -> Vec<String> {
    let chars: Vec<char> = identifier.chars().collect();
    let mut words = vec![String::new()];
    for (at, &c) in chars.iter().enumerate() {
        let follows_lower = at > 0 && !chars[at - 1].is_uppercase();
        let precedes_lower = chars.get(at + 1).is_some_and(|next| next.is_lowercase());
        if !c.is_alphabetic() || (c.is_uppercase() && (follows_lower || precedes_lower)) {
            words.push(String::new());
        }
        if c.is_alphabetic() {
            words.last_mut().expect("a word").extend(c.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn identifiers_are_split_into_words() {
    let code = r##"let a_b = "text"; // image
        fn f<'a>(x: &'a HTTPServer) -> Vec2d { '"'; '\''; r#"a "word""#; b"wave \" patch"; /* pixel */ }"##;
    let found = identifiers(code);
    assert_eq!(
        found,
        ["let", "a_b", "fn", "f", "a", "x", "a", "HTTPServer", "Vec2d"],
        "literals and comments are skipped"
    );
    let split: Vec<String> = found.iter().map(|name| words(name).join(" ")).collect();
    assert_eq!(split, ["let", "a b", "fn", "f", "a", "x", "a", "http server", "vec d"]);
    assert_eq!(words("add_textFiles"), ["add", "text", "files"]);
}

#[test]
fn core_names_no_modality() {
    let modal =
        ["speech", "audio", "wave", "vision", "image", "pixel", "patch", "nlp", "word", "text"];
    for path in files(&root().join("crates/core/src"), &[".rs"]) {
        let code = read(&path);
        for name in identifiers(&code) {
            let is_modal = |word: &String| {
                modal.contains(&word.as_str())
                    || word.strip_suffix('s').is_some_and(|word| modal.contains(&word))
            };
            assert!(!words(name).iter().any(is_modal), "{}: {name}", path.display());
        }
    }
}

#[test]
fn only_torch_ext_uses_unsafe() {
    let mut seen = 0;
    for path in files(&root(), &[".rs"]) {
        let code = read(&path);
        let uses = identifiers(&code).into_iter().filter(|&name| name == "unsafe").count();
        let is_inside = path.to_string_lossy().contains("crates/torch-ext/");
        seen += uses;
        assert!(uses == 0 || is_inside, "{}", path.display());
    }
    assert!(seen > 5, "torch-ext uses it");
}

#[test]
fn only_programs_print() {
    for krate in ["torch-ext", "core", "source", "speech", "vision", "nlp", "train"] {
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
fn libtorch_version_is_defined_once_and_is_the_linked_one() {
    let version = data2vec_torch_ext::libtorch_version();
    let quoted = format!("\"{version}\"");
    let mut found = Vec::new();
    for path in files(&root(), &[".rs", ".toml", ".sh"]) {
        if code(&path).iter().any(|line| line.contains(&quoted)) {
            found.push(path);
        }
    }
    assert_eq!(found.len(), 1, "{version} is in {found:?}");
    assert!(found[0].to_string_lossy().contains("xtask"), "{found:?}");
}

#[test]
fn source_files_are_short() {
    for path in files(&root(), &[".rs", ".cpp", ".py"]) {
        let lines = read(&path).lines().count();
        assert!(lines <= 450, "{} has {lines} lines; split it", path.display());
    }
}
