#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;

/// Creates a directory that looks like LibTorch of this version.
pub fn fake_libtorch(dir: &Path, version: &str) {
    fs::create_dir_all(dir.join("lib")).unwrap();
    fs::create_dir_all(dir.join("include/torch/headeronly")).unwrap();
    for lib in ["torch_cpu", "c10"] {
        let name = format!("{}{lib}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        fs::write(dir.join("lib").join(name), "library").unwrap();
    }
    fs::write(dir.join("build-version"), version).unwrap();
}

fn is_usable(dir: &Path) -> bool {
    matches!(state(dir).unwrap(), State::Usable(_))
}

#[test]
fn reads_version_of_every_layout() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(version(dir), None);
    fs::create_dir_all(dir.join("include/torch/headeronly")).unwrap();
    fs::write(
        dir.join("include/torch/headeronly/version.h"),
        "#pragma once\n#define TORCH_VERSION \"2.1.0\"\n",
    )
    .unwrap();
    assert_eq!(version(dir).as_deref(), Some("2.1.0"));
    fs::write(dir.join("version.py"), "from x import y\n__version__ = '2.2.0+cu130'\n").unwrap();
    assert_eq!(version(dir).as_deref(), Some("2.2.0"));
    fs::write(dir.join("build-version"), "2.3.0+cpu\n").unwrap();
    assert_eq!(version(dir).as_deref(), Some("2.3.0"));
}

#[test]
fn rejects_other_versions() {
    let dir = tempfile::tempdir().unwrap();
    let libtorch = dir.path().join("libtorch");
    assert!(matches!(state(&libtorch).unwrap(), State::Absent));
    fake_libtorch(&libtorch, VERSION);
    assert!(is_usable(&libtorch));
    fake_libtorch(&libtorch, "1.0.0+cpu");
    let State::Foreign(reason) = state(&libtorch).unwrap() else { panic!("must be foreign") };
    assert!(reason.contains("LibTorch 1.0.0, not"), "{reason}");
    assert!(ensure_replaceable(&libtorch).unwrap_err().to_string().contains("move it away"));
    fake_libtorch(&libtorch, VERSION);
    fs::remove_dir_all(libtorch.join("include")).unwrap();
    assert!(!is_usable(&libtorch));
}

#[test]
fn detects_and_replaces_damaged_installation() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, libtorch, partial) =
        (dir.path().join("tree"), dir.path().join("libtorch"), dir.path().join("libtorch.partial"));
    fs::create_dir(&partial).unwrap();
    fake_libtorch(&tree, VERSION);
    fs::write(tree.join("include/torch/all.h"), "header").unwrap();
    install_tree(&tree, &libtorch, &partial).unwrap();
    assert!(is_usable(&libtorch) && !tree.exists());
    assert!(size(&libtorch).unwrap() > 20);
    fs::write(libtorch.join("include/torch/all.h"), "head").unwrap();
    let State::Managed(reason) = state(&libtorch).unwrap() else { panic!("must be replaceable") };
    assert!(reason.contains("all.h"), "{reason}");
    ensure_replaceable(&libtorch).unwrap();
    fake_libtorch(&tree, VERSION);
    install_tree(&tree, &libtorch, &partial).unwrap();
    assert!(is_usable(&libtorch) && !partial.join("old").exists());
}

#[test]
fn does_not_install_incomplete_tree() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, libtorch) = (dir.path().join("tree"), dir.path().join("libtorch"));
    fs::create_dir(&tree).unwrap();
    assert!(install_tree(&tree, &libtorch, dir.path()).is_err());
    assert!(!libtorch.exists());
}

#[cfg(unix)]
#[test]
fn follows_and_replaces_links() {
    let dir = tempfile::tempdir().unwrap();
    let (torch, libtorch, partial) =
        (dir.path().join("torch"), dir.path().join("libtorch"), dir.path().join("partial"));
    fs::create_dir(&partial).unwrap();
    fake_libtorch(&torch, VERSION);
    link(&torch, &libtorch, &partial).unwrap();
    assert!(is_usable(&libtorch));
    fs::remove_dir_all(&torch).unwrap();
    assert!(matches!(state(&libtorch).unwrap(), State::Absent));
    fake_libtorch(&torch, "1.0");
    assert!(matches!(state(&libtorch).unwrap(), State::Managed(_)));
    let other = dir.path().join("other");
    fake_libtorch(&other, VERSION);
    link(&other, &libtorch, &partial).unwrap();
    assert!(is_usable(&libtorch));
}

#[test]
fn partial_directory_is_a_sibling() {
    assert_eq!(partial(Path::new("/a/.libtorch")), Path::new("/a/.libtorch.partial"));
}
