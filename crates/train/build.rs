//! Sets `DATA2VEC_COMMIT`, the commit that the program is built from.

use std::process::Command;

fn main() {
    // Rebuilds when sources change, not when a commit changes other files.
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

/// Returns the commit, with `-dirty` if files differ from it. Returns `None` outside of a git
/// checkout.
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
