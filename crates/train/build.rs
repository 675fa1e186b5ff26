//! Tells the program which commit its source is of.

use std::process::Command;

fn main() {
    // With these changes what is built; a commit of something else is no other source.
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    for entry in std::fs::read_dir("..").into_iter().flatten().flatten() {
        for part in ["Cargo.toml", "src", "cpp"] {
            let path = entry.path().join(part);
            if path.exists() {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
    let commit = commit().unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=DATA2VEC_COMMIT={commit}");
}

/// The commit, with `-dirty` if files differ from it. `None` without git, or outside of its repository.
fn commit() -> Option<String> {
    git(&["ls-files", "--error-unmatch", "Cargo.toml"])?;
    let commit = git(&["rev-parse", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no", "../.."])?;
    Some(if changes.is_empty() { commit } else { commit + "-dirty" })
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
