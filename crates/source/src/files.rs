//! Presents the examples of shards as files of a directory: packing a directory does not change its
//! dataset.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use serde_json::Value as Json;

use crate::names::{compare_paths, path_of};
use crate::{Error, Progress, Result, Source, SourceConfig, Value, locations};

/// Field with a JSON object of metadata.
const METADATA_FIELD: &str = "json";
/// Maximum number of examples listed in [`Files::missing`].
const MAX_MISSING_LISTED: usize = 10_000;

/// One field of each example, as files with relative paths in the order of a directory walk.
///
/// The path is the key, a dot and the field's name, so that examples packed from a directory keep
/// their paths. The shard's name is prepended if several shards share a key, or keys are line or
/// row numbers.
pub struct Files {
    location: PathBuf,
    source: Source,
    /// Names of the requested fields.
    fields: Vec<String>,
    /// For each file, the indices of its example and its field.
    entries: Vec<(u32, u8)>,
    /// Examples whose key also occurs in another shard.
    duplicates: HashSet<u32>,
    missing: Vec<String>,
    /// Class names by column.
    classes: Mutex<HashMap<String, Option<Vec<String>>>>,
}

/// See [`watch_indexing`].
static WATCHER: OnceLock<Box<dyn Fn(Progress) + Send + Sync>> = OnceLock::new();

/// Sets a process-wide callback for the progress of indexes that [`Files::open`] builds.
///
/// It is global because shards are opened deep inside dataset code. Only the first call has an
/// effect.
pub fn watch_indexing(watcher: impl Fn(Progress) + Send + Sync + 'static) {
    // Later calls are ignored.
    let _ = WATCHER.set(Box::new(watcher));
}

impl Files {
    /// Opens the shards at `location`; an example's file is the first of the fields `wanted` that
    /// it has.
    ///
    /// The index is stored in `cache`, by default the user's cache directory.
    ///
    /// # Errors
    /// As for [`Source::open`]; [`Error::Shard`] if no example has a wanted field, or a shard has a
    /// duplicate key.
    pub fn open(location: &Path, cache: Option<&Path>, wanted: &[&str]) -> Result<Self> {
        let config = SourceConfig {
            shards: vec![location.display().to_string()],
            ..SourceConfig::default()
        };
        let cache = cache.map_or_else(locations::user_cache, Path::to_owned);
        let source = Source::open(&config, &cache, &mut |progress| {
            if let Some(watcher) = WATCHER.get() {
                watcher(progress);
            }
        })?;
        if u32::try_from(source.len()).is_err() {
            let reason = format!("has {} examples, more than 2^32; split it", source.len());
            return Err(Error::shard(config.shards.join(", "), reason));
        }
        let fields = wanted.iter().map(|&name| name.to_owned()).collect();
        let (entries, duplicates, missing) = (Vec::new(), HashSet::new(), Vec::new());
        let (location, classes) = (location.to_owned(), Mutex::default());
        let mut files = Self { location, source, fields, entries, duplicates, missing, classes };
        files.select_fields()?;
        files.sort()?;
        Ok(files)
    }

    /// Selects the field of each example, and collects the examples without one.
    fn select_fields(&mut self) -> Result<()> {
        let mut unlisted = 0_u64;
        for at in 0..self.source.len() {
            let has = self.source.fields(at)?;
            let field = self.fields.iter().position(|name| has.iter().any(|has| has.name == *name));
            match field {
                Some(field) => self.entries.push((at as u32, field as u8)),
                None if self.missing.len() < MAX_MISSING_LISTED => {
                    let has: Vec<String> = has.into_iter().map(|field| field.name).collect();
                    let (name, wanted) = (self.source.name(at), self.fields.join(", "));
                    let reason = |_| format!("{name}: has {}, none of {wanted}", has.join(", "));
                    let read = self.source.read_some(at, &|_| false);
                    self.missing.push(read.map_or_else(|error| error.to_string(), reason));
                }
                None => unlisted += 1,
            }
        }
        if unlisted > 0 {
            self.missing.push(format!("and {unlisted} more"));
        }
        match (self.entries.is_empty(), self.missing.first()) {
            (true, Some(first)) => {
                let reason = format!("no usable example: {first}");
                Err(Error::shard(self.location.display().to_string(), reason))
            }
            _ => Ok(()),
        }
    }

    /// Sorts the files by path, and finds duplicate paths.
    fn sort(&mut self) -> Result<()> {
        let paths = self.entries.iter().map(|&(at, field)| {
            let (shard, key) = self.source.shard_and_path(at as usize)?;
            Ok((path_of(&key, &self.fields[usize::from(field)]), shard, at, field))
        });
        let mut paths: Vec<(String, u32, u32, u8)> = paths.collect::<Result<_>>()?;
        paths.sort_by(|a, b| compare_paths(&a.0, &b.0).then(a.2.cmp(&b.2)));
        for pair in paths.windows(2) {
            let [(one, shard, at, _), (other, next_shard, next_at, _)] = pair else { continue };
            if one != other {
                continue;
            }
            if shard == next_shard {
                let name = self.source.name(*at as usize);
                return Err(Error::shard(
                    name,
                    "the key is a duplicate within the shard; rename one of the examples",
                ));
            }
            self.duplicates.extend([*at, *next_at]);
        }
        self.entries = paths.into_iter().map(|(_, _, at, field)| (at, field)).collect();
        Ok(())
    }

    /// Returns the number of files, at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the location of the shards, as given by the user.
    pub fn location(&self) -> &Path {
        &self.location
    }

    /// Returns a file's relative path, with `/` as separator.
    ///
    /// # Panics
    /// If `at` is out of range, as all methods that take an index.
    pub fn path(&self, at: usize) -> String {
        let (example, field) = self.entries[at];
        let Ok((shard, key)) = self.source.shard_and_path(example as usize) else {
            return format!("example {example}"); // reading it returns the error
        };
        let path = path_of(&key, &self.fields[usize::from(field)]);
        match self.duplicates.contains(&example) {
            true => format!("{}/{path}", self.source.shard_name(shard)),
            false => path,
        }
    }

    /// Returns a file's size in bytes (0 if unknown without reading it), and a number that changes
    /// with its shard.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn stamp(&self, at: usize) -> Result<(u64, u64)> {
        let (example, field) = self.entries[at];
        let name = &self.fields[usize::from(field)];
        let fields = self.source.fields(example as usize)?;
        let size =
            fields.into_iter().find(|field| field.name == *name).and_then(|field| field.size);
        let (shard, _) = self.source.shard_and_path(example as usize)?;
        Ok((size.unwrap_or(0), self.source.shard_stamp(shard)))
    }

    /// Fetches the remote blocks of these files concurrently; see [`Source::prefetch`].
    pub fn prefetch(&self, files: impl Iterator<Item = usize>) {
        let examples: Vec<usize> = files.map(|at| self.entries[at].0 as usize).collect();
        self.source.prefetch(&examples);
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// As for [`Source::read`], or if the field is missing or is neither bytes nor text.
    pub fn read(&self, at: usize) -> Result<Bytes> {
        let (example, field) = self.entries[at];
        let name = self.fields[usize::from(field)].as_str();
        let read = self.source.read_some(example as usize, &|field| field == name)?;
        let content = read.get(name).map(|value| {
            let text = || value.text().map(|text| Bytes::copy_from_slice(text.as_bytes()));
            value.bytes().cloned().or_else(text)
        });
        let reason = match content {
            Some(Some(content)) => return Ok(content),
            Some(None) => format!("the field {name} is neither bytes nor text"),
            None => format!("the field {name} is missing"),
        };
        Err(Error::shard(self.source.name(example as usize), reason))
    }

    /// Returns the text of another field of a file's example: the first of `names` that exists.
    ///
    /// Keys of the object in the field `json` are searched after the fields. Numbers are formatted
    /// as text; in a `ClassLabel` column they are replaced by the class name.
    ///
    /// # Errors
    /// As for [`Source::read`].
    pub fn field(&self, at: usize, names: &[&str]) -> Result<Option<String>> {
        let wanted = |field: &str| field == METADATA_FIELD || names.contains(&field);
        let example = self.source.read_some(self.entries[at].0 as usize, &wanted)?;
        for name in names {
            match example.get(name) {
                Some(Value::Integer(number)) => return Ok(Some(self.class_name(name, *number)?)),
                Some(Value::Number(number)) => return Ok(Some(number.to_string())),
                Some(value) if value.text().is_some() => {
                    return Ok(value.text().map(str::to_owned));
                }
                _ => {}
            }
        }
        let from_metadata = || {
            let metadata: Json = serde_json::from_str(example.get(METADATA_FIELD)?.text()?).ok()?;
            names.iter().find_map(|name| match metadata.get(name)? {
                Json::String(text) => Some(text.clone()),
                Json::Number(number) => Some(number.to_string()),
                _ => None,
            })
        };
        Ok(from_metadata())
    }

    /// Returns the class name of a number in a column, or the number if the column has no class
    /// names.
    fn class_name(&self, column: &str, number: i64) -> Result<String> {
        let mut known = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains_key(column) {
            known.insert(column.to_owned(), self.source.classes(column)?);
        }
        let names = known.get(column).and_then(Option::as_ref);
        let name = usize::try_from(number).ok().and_then(|number| names?.get(number).cloned());
        Ok(name.unwrap_or_else(|| number.to_string()))
    }

    /// Returns the examples without a file, each with its reason; beyond 10 000 only their number.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{} files in {}", self.len(), self.location.display())
    }
}
