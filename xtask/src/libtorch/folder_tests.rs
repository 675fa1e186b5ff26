#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;

/// A folder that looks like LibTorch of this version.
pub fn pretend(dir: &Path, version: &str) {
    fs::create_dir_all(dir.join("lib")).unwrap();
    fs::create_dir_all(dir.join("include/torch/headeronly")).unwrap();
    for lib in ["torch_cpu", "c10"] {
        let name = format!("{}{lib}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        fs::write(dir.join("lib").join(name), "library").unwrap();
    }
    fs::write(dir.join("build-version"), version).unwrap();
}

fn is_good(dir: &Path) -> bool {
    matches!(state(dir).unwrap(), State::Good(_))
}

#[test]
fn versions_are_read_from_every_layout() {
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
fn only_the_right_version_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let libtorch = dir.path().join("libtorch");
    assert!(matches!(state(&libtorch).unwrap(), State::Absent));
    pretend(&libtorch, VERSION);
    assert!(is_good(&libtorch));
    pretend(&libtorch, "1.0.0+cpu");
    let State::Foreign(why) = state(&libtorch).unwrap() else {
        panic!("another version is not ours")
    };
    assert!(why.contains("LibTorch 1.0.0, not"), "{why}");
    assert!(ensure_replaceable(&libtorch).unwrap_err().to_string().contains("move it away"));
    pretend(&libtorch, VERSION);
    fs::remove_dir_all(libtorch.join("include")).unwrap();
    assert!(!is_good(&libtorch));
}

#[test]
fn what_we_installed_is_checked_file_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, libtorch, partial) =
        (dir.path().join("tree"), dir.path().join("libtorch"), dir.path().join("libtorch.partial"));
    fs::create_dir(&partial).unwrap();
    pretend(&tree, VERSION);
    fs::write(tree.join("include/torch/all.h"), "header").unwrap();
    finish(&tree, &libtorch, &partial).unwrap();
    assert!(is_good(&libtorch) && !tree.exists());
    assert!(size(&libtorch).unwrap() > 20);
    fs::write(libtorch.join("include/torch/all.h"), "head").unwrap();
    let State::Ours(why) = state(&libtorch).unwrap() else {
        panic!("a damaged one is ours to replace")
    };
    assert!(why.contains("all.h"), "{why}");
    ensure_replaceable(&libtorch).unwrap();
    pretend(&tree, VERSION);
    finish(&tree, &libtorch, &partial).unwrap();
    assert!(is_good(&libtorch) && !partial.join("old").exists());
}

#[test]
fn an_unfinished_tree_is_never_put_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, libtorch) = (dir.path().join("tree"), dir.path().join("libtorch"));
    fs::create_dir(&tree).unwrap();
    assert!(finish(&tree, &libtorch, dir.path()).is_err());
    assert!(!libtorch.exists());
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (torch, libtorch, partial) =
        (dir.path().join("torch"), dir.path().join("libtorch"), dir.path().join("partial"));
    fs::create_dir(&partial).unwrap();
    pretend(&torch, VERSION);
    link(&torch, &libtorch, &partial).unwrap();
    assert!(is_good(&libtorch));
    fs::remove_dir_all(&torch).unwrap();
    assert!(matches!(state(&libtorch).unwrap(), State::Absent));
    pretend(&torch, "1.0");
    assert!(matches!(state(&libtorch).unwrap(), State::Ours(_)));
    let other = dir.path().join("other");
    pretend(&other, VERSION);
    link(&other, &libtorch, &partial).unwrap();
    assert!(is_good(&libtorch));
}

#[test]
fn partial_folders_lie_beside() {
    assert_eq!(partial(Path::new("/a/.libtorch")), Path::new("/a/.libtorch.partial"));
}
