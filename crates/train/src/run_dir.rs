//! The folder of a run: what it is, where it stands, and that nobody else writes to it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use toml::Table;

use crate::recipe::{changes, toml_error};

/// A run's folder, locked for the process that writes.
pub struct RunFolder {
    path: PathBuf,
    /// Held as long as the process trains; `None`: it is another process that writes.
    _lock: Option<File>,
}

impl RunFolder {
    /// Creates the folder if need be, and locks it.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("--out {}", path.display()))?;
        let lock_path = path.join("run.lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.with_context(|| lock_path.display().to_string())?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: Some(lock) }),
            Err(TryLockError::WouldBlock) => {
                bail!("another process trains in {}; give this one its own --out", path.display())
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(|| lock_path.display().to_string()),
        }
    }

    /// The folder to which another process of the same run writes.
    pub fn look_at(path: &Path) -> Self {
        Self { path: path.to_owned(), _lock: None }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Compares the recipe with the one this run was started with, or keeps it for next time. Before
    /// anything was learned, another one may take its place.
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
            let folder = self.path.display();
            anyhow!("{name} is broken ({reason}); restore it, or remove {folder}")
        })?;
        let changes = changes(&old, recipe);
        if !changes.is_empty() {
            bail!(
                "{} was started with another recipe ({}); go on with the old one, or give this one its own --out",
                self.path.display(),
                changes.join(", ")
            );
        }
        write(&path, &toml::to_string(recipe)?)
    }

    /// Compares `text`, which tells what inputs or outputs mean, with that of the start of this run, or
    /// keeps it in the file `name` for next time: with another one of the same size, all that was
    /// learned would be about something else.
    pub fn check_meaning(&self, name: &str, what: &str, text: &str) -> Result<()> {
        let path = self.join(name);
        match fs::read_to_string(&path) {
            Ok(old) if old.trim() == text.trim() => Ok(()),
            Ok(_) if self.has_results() => bail!(
                "{} was started with {what}; restore them (what is made from the data needs the same data), or give this run its own --out",
                self.path.display()
            ),
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| path.display().to_string())
            }
            _ => write(&path, text),
        }
    }

    /// Whether there is a checkpoint, whole or not, or an encoder.
    fn has_results(&self) -> bool {
        let entries = fs::read_dir(self.join("checkpoints")).into_iter().flatten().flatten();
        let is_one = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("step-");
        ["encoder", "model"].iter().any(|name| self.join(name).exists())
            || entries.into_iter().any(is_one)
    }
}

/// The text of a file; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        text => text.map(Some).with_context(|| path.display().to_string()),
    }
}

/// Replaces a small file in one step.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, text)
        .and_then(|()| File::open(&unfinished)?.sync_all())
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_cannot_share_a_folder() {
        let dir = std::env::temp_dir().join(format!("data2vec-run-{}", std::process::id()));
        let first = RunFolder::open(&dir).expect("a free folder");
        let second = RunFolder::open(&dir).err().expect("a locked folder").to_string();
        assert!(second.contains("another process"), "{second}");
        drop(first);
        assert!(RunFolder::open(&dir).is_ok());
        fs::remove_dir_all(&dir).expect("the folder");
    }

    #[test]
    fn a_changed_recipe_is_refused_with_the_key() {
        let dir = std::env::temp_dir().join(format!("data2vec-recipe-{}", std::process::id()));
        let run = RunFolder::open(&dir).expect("a free folder");
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
        fs::remove_dir_all(&dir).expect("the folder");
    }
}
