//! The run directory: its recipe, its fingerprints, and its lock.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail};
use data2vec_core::World;
use data2vec_core::io::file::write_file;
use data2vec_core::io::toml::toml_error;
use toml::Table;

use crate::recipe::changes;

/// A run directory, locked for the process that writes to it. If it was missing or empty before and
/// training never begins, it is so again.
pub struct RunDir {
    path: PathBuf,
    /// Held while the process trains; `None` on ranks that do not write.
    lock: Option<File>,
    /// State to restore if training does not begin.
    before: Before,
}

/// State of a run directory before the process opened it.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Missing,
    Empty,
    /// It has files, or training has begun: nothing is removed.
    InUse,
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.before == Before::InUse || self.lock.is_none() {
            return;
        }
        let _ = fs::remove_dir_all(&self.path); // the error that ended the start matters more
        if self.before == Before::Empty {
            let _ = fs::create_dir(&self.path);
        }
    }
}

impl RunDir {
    /// Opens the run directory on all ranks. Rank 0 locks it, checks it with `check` and returns
    /// what that returns.
    ///
    /// # Errors
    /// If another process has locked it, or `check` fails.
    pub fn open_run<T>(
        world: &World,
        path: &Path,
        check: impl FnOnce(&Self) -> Result<Option<T>>,
    ) -> Result<(Self, Option<T>)> {
        let opened = world.on_rank0(|| {
            let dir = Self::open(path)?;
            let checked = check(&dir)?;
            Ok::<_, Error>((dir, checked))
        })?;
        let other = || Self { path: path.to_owned(), lock: None, before: Before::InUse };
        Ok(opened.unwrap_or_else(|| (other(), None)))
    }

    /// Creates the directory if necessary, and locks it.
    ///
    /// # Errors
    /// If another process has locked it.
    pub fn open(path: &Path) -> Result<Self> {
        let before = match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Before::Empty,
            Ok(false) => Before::InUse,
            Err(_) => Before::Missing,
        };
        fs::create_dir_all(path).with_context(|| format!("--out {}", path.display()))?;
        let lock_path = path.join("run.lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.with_context(|| lock_path.display().to_string())?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock: Some(lock), before }),
            Err(TryLockError::WouldBlock) => {
                bail!("another process trains in {}; choose another --out", path.display())
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(|| lock_path.display().to_string()),
        }
    }

    /// Keeps the directory from here on: training begins.
    pub fn keep(&mut self) {
        self.before = Before::InUse;
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of a file or directory in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Checks that the recipe equals the one this run was started with, and writes it. Before the
    /// first checkpoint it may be replaced.
    ///
    /// # Errors
    /// If a key that affects training has changed, naming it.
    pub fn check_recipe(&self, recipe: &Table, resume: bool) -> Result<()> {
        let path = self.join("recipe.toml");
        let text = match fs::read_to_string(&path) {
            Ok(text) if self.has_results() => text,
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| path.display().to_string());
            }
            _ if resume => bail!("--resume: there is no run in {}", self.path.display()),
            _ => return write(&path, &toml::to_string(recipe)?),
        };
        let old: Table = text.parse().map_err(|e: toml::de::Error| {
            let (name, reason) = (path.display(), toml_error(&text, &e));
            let dir = self.path.display();
            anyhow!("{name} is damaged ({reason}); restore it, or remove {dir}")
        })?;
        let changes = changes(&old, recipe);
        if !changes.is_empty() {
            bail!(
                "{} was started with another recipe ({}); resume with the old one, or choose another --out",
                self.path.display(),
                changes.join(", ")
            );
        }
        write(&path, &toml::to_string(recipe)?)
    }

    /// Checks a fingerprint of the input or output encoding against the one in the file `name`, and
    /// writes it. Training on with another encoding of the same size would make nonsense of what
    /// was learned.
    ///
    /// # Errors
    /// If it has changed after the first checkpoint; `what` names the change.
    pub fn check_fingerprint(&self, name: &str, what: &str, text: &str) -> Result<()> {
        let path = self.join(name);
        match fs::read_to_string(&path) {
            Ok(old) if old.trim() == text.trim() => Ok(()),
            Ok(_) if self.has_results() => bail!(
                "{} was started with {what}; restore them (a tokenizer made from the data needs the same data), or choose another --out",
                self.path.display()
            ),
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| path.display().to_string())
            }
            _ => write(&path, text),
        }
    }

    /// Whether there is a checkpoint, damaged or not, or an exported model.
    fn has_results(&self) -> bool {
        let entries = fs::read_dir(self.join("checkpoints")).into_iter().flatten().flatten();
        let is_one = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("step-");
        ["encoder", "model"].iter().any(|name| self.join(name).exists())
            || entries.into_iter().any(is_one)
    }
}

/// Reads a text file; `None` if there is none.
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        text => text.map(Some).with_context(|| path.display().to_string()),
    }
}

/// Replaces a small file atomically.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    Ok(write_file(path, text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_a_second_process() {
        let dir = std::env::temp_dir().join(format!("data2vec-run-{}", std::process::id()));
        let mut first = RunDir::open(&dir).expect("an unlocked directory");
        first.keep();
        let second = RunDir::open(&dir).err().expect("a locked directory").to_string();
        assert!(second.contains("another process"), "{second}");
        drop(first);
        assert!(RunDir::open(&dir).is_ok());
        fs::remove_dir_all(&dir).expect("the directory");
    }

    #[test]
    fn a_failed_start_leaves_nothing() {
        let parent = tempfile::tempdir().expect("a directory");
        let (new, own) = (parent.path().join("new"), parent.path().join("own"));
        fs::create_dir(&own).expect("a directory");
        fs::write(own.join("notes.txt"), "mine").expect("written");
        for path in [&new, &own] {
            let run = RunDir::open(path).expect("an unlocked directory");
            write(&run.join("recipe.toml"), "seed = 1").expect("written");
        }
        assert!(!new.exists());
        assert_eq!(fs::read_to_string(own.join("notes.txt")).expect("kept"), "mine");
    }

    #[test]
    fn rejects_a_changed_recipe_naming_the_key() {
        let dir = std::env::temp_dir().join(format!("data2vec-recipe-{}", std::process::id()));
        let mut run = RunDir::open(&dir).expect("an unlocked directory");
        run.keep();
        let recipe = |text: &str| text.parse::<Table>().expect("a table");
        assert!(run.check_recipe(&recipe("seed = 1"), true).is_err());
        let with = |seed: u32, workers: u32| {
            recipe(&format!("seed = {seed}\n[train]\nworkers = {workers}"))
        };
        run.check_recipe(&with(3, 1), false).expect("a first start");
        run.check_recipe(&with(1, 1), false).expect("another one before the first checkpoint");
        assert!(run.check_recipe(&with(1, 1), true).is_err());
        fs::create_dir_all(run.join("checkpoints/step-00000001")).expect("space");
        run.check_recipe(&with(1, 2), true).expect("a free key");
        let error = run.check_recipe(&with(2, 2), false).unwrap_err().to_string();
        assert!(error.contains("seed: 1 → 2"), "{error}");
        fs::remove_dir_all(&dir).expect("the directory");
    }
}
