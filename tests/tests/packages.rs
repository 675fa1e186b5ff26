//! Every crate that is published can be packaged: versions on path dependencies, files included.

use std::fs;

use data2vec_tests::program::{cargo, root, table};

#[test]
fn crates_can_be_packaged() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut package = cargo(root());
    package.args(["package", "--offline", "--no-verify", "--allow-dirty", "--workspace"]);
    package.args(["--exclude", "xtask", "--exclude", "data2vec-tests", "--target-dir"]);
    let output = package.arg(dir.path()).output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for entry in fs::read_dir(root().join("crates")).expect("crates").flatten() {
        let manifest = table(&entry.path().join("Cargo.toml"));
        let name = manifest["package"]["name"].as_str().expect("a name");
        let version = env!("CARGO_PKG_VERSION");
        let file = dir.path().join(format!("package/{name}-{version}.crate"));
        assert!(file.is_file(), "{}", file.display());
        for key in ["description", "readme"] {
            assert!(manifest["package"].get(key).is_some(), "{name}: no {key}");
        }
    }
}
