//! No two files of a crate import each other in a loop. An import of a re-export counts as an import
//! of the file that defines the item, so that module roots that only re-export are no part of a loop.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Module path of a file, as in `["io", "checkpoint"]`; the crate root is empty.
type Module = Vec<String>;

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => rust_files(&path, found),
            false if path.extension().is_some_and(|e| e == "rs") => found.push(path),
            false => {}
        }
    }
}

fn module_of(src: &Path, file: &Path) -> Module {
    let relative = file.strip_prefix(src).expect("below src").with_extension("");
    let mut parts: Module =
        relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// The code of a file, without comments and unit tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("text");
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    code.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

/// Expands `a::{b, c::d}` to `a::b` and `a::c::d`, without white space and renames.
fn expand(path: &str) -> Vec<String> {
    let path = path.split(" as ").next().unwrap_or_default().trim();
    let Some((prefix, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let body = rest.rsplit_once('}').map_or(rest, |(body, _)| body);
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, letter) in body.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&body[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&body[start..]);
    let prefix = prefix.trim();
    let full = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    full.flat_map(|part| expand(&format!("{prefix}{part}"))).collect()
}

/// Paths of `use` declarations; of those that re-export if `public`.
fn uses(code: &str, public: bool) -> Vec<String> {
    let statements = code.split(';').filter_map(|statement| {
        let at = statement
            .rfind("use ")
            .filter(|&at| at == 0 || statement[..at].ends_with(|c: char| c.is_whitespace()))?;
        let is_public = statement[..at].trim_end().ends_with("pub")
            || statement[..at].trim_end().ends_with(')');
        (!public || is_public).then(|| statement[at + 4..].to_owned())
    });
    let flat = statements.map(|path| path.split_whitespace().collect::<Vec<_>>().join(" "));
    flat.flat_map(|path| expand(&path)).collect()
}

struct Crate {
    modules: BTreeMap<Module, String>,
    /// Of each module, re-exported names and their paths.
    reexports: BTreeMap<Module, BTreeMap<String, String>>,
}

impl Crate {
    fn read(src: &Path) -> Self {
        let mut files = Vec::new();
        rust_files(src, &mut files);
        let modules: BTreeMap<Module, String> =
            files.iter().map(|file| (module_of(src, file), code(file))).collect();
        let exports = |code: &String| {
            let named = |path: String| (path.rsplit("::").next().unwrap_or(&path).to_owned(), path);
            uses(code, true).into_iter().map(named).collect()
        };
        let reexports = modules.iter().map(|(module, code)| (module.clone(), exports(code)));
        Self { reexports: reexports.collect(), modules }
    }

    /// The module whose file defines what `path` names in `module`; `None` outside of the crate.
    fn resolve(&self, module: &Module, path: &str, depth: usize) -> Option<Module> {
        let mut segments: Vec<&str> = path.split("::").collect();
        let mut base = module.clone();
        match segments[0] {
            "crate" => base.clear(),
            "super" => {}
            "self" => drop(segments.remove(0)),
            _ => return None,
        }
        if segments[0] == "crate" {
            segments.remove(0);
        }
        while segments.first() == Some(&"super") {
            base.pop();
            segments.remove(0);
        }
        let full: Module =
            base.iter().cloned().chain(segments.iter().map(|s| (*s).to_owned())).collect();
        let known = (0..=full.len()).rev().find(|&n| self.modules.contains_key(&full[..n]))?;
        let found = full[..known].to_vec();
        let reexport = full.get(known).and_then(|name| self.reexports[&found].get(name));
        match reexport.filter(|_| depth < 8) {
            Some(path) if path.starts_with("crate::") || path.starts_with("super::") => {
                self.resolve(&found, path, depth + 1)
            }
            Some(path) => self.resolve(&found, &format!("self::{path}"), depth + 1),
            None => Some(found),
        }
    }

    fn imports(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let of = |(module, code): (&Module, &String)| {
            let paths = uses(code, false);
            let local =
                paths.iter().filter(|p| p.starts_with("crate::") || p.starts_with("super::"));
            let found = local.filter_map(|path| self.resolve(module, path, 0));
            (module.clone(), found.filter(|other| other != module).collect())
        };
        self.modules.iter().map(of).collect()
    }
}

/// A loop through `module`, if there is one.
fn find_loop(graph: &BTreeMap<Module, BTreeSet<Module>>, module: &Module) -> Option<Vec<Module>> {
    let mut stack = vec![vec![module.clone()]];
    let mut seen = BTreeSet::new();
    while let Some(path) = stack.pop() {
        for next in graph.get(path.last()?).into_iter().flatten() {
            if next == module {
                return Some(path);
            }
            if seen.insert(next.clone()) {
                stack.push(path.iter().chain([next]).cloned().collect());
            }
        }
    }
    None
}

#[test]
fn files_do_not_import_each_other_in_a_loop() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut imports = 0;
    for entry in fs::read_dir(&crates).expect("crates").flatten() {
        let graph = Crate::read(&entry.path().join("src")).imports();
        imports += graph.values().map(BTreeSet::len).sum::<usize>();
        for module in graph.keys() {
            let found = find_loop(&graph, module);
            let names = found.map(|path| path.iter().map(|m| m.join("::")).collect::<Vec<_>>());
            assert!(names.is_none(), "{}: {names:?}", entry.file_name().to_string_lossy());
        }
    }
    assert!(imports > 300, "only {imports} imports were found");
}

#[test]
fn loops_are_found() {
    let module = |name: &str| vec![name.to_owned()];
    let mut modules = BTreeMap::from([
        (vec![], "pub use a::A;\nmod a; mod b;".to_owned()),
        (module("a"), "use std::fs;\nuse crate::b::{\n    B,\n};".to_owned()),
        (module("b"), "use crate::A;".to_owned()),
    ]);
    let graph = |modules: &BTreeMap<Module, String>| {
        let dir = tempfile::tempdir().expect("a directory");
        for (module, code) in modules {
            let name = module.first().map_or("lib", String::as_str);
            fs::write(dir.path().join(format!("{name}.rs")), code).expect("written");
        }
        Crate::read(dir.path()).imports()
    };
    assert_eq!(find_loop(&graph(&modules), &module("a")).map(|path| path.len()), Some(2));
    modules.insert(module("b"), "use super::c;".to_owned());
    assert_eq!(find_loop(&graph(&modules), &module("a")), None);
}
