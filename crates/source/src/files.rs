//! Examples as files below a folder: what is made of a folder is the same when it was packed.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use serde_json::Value as Json;

use crate::names::{order, path_of};
use crate::{Error, Progress, Result, Source, SourceConfig, Value, places};

/// A field that may tell anything of its example.
const NOTES: &str = "json";
/// Lacking examples that are named one by one.
const MOST_NAMED: usize = 10_000;

/// One field of each example, as a file with a relative path, in the order that a folder with these files
/// is walked in.
///
/// The path is the key, a dot and the field's name, so that examples packed from a folder are called what
/// they were called there. Where several shards have a key, and where keys are numbers of lines or rows,
/// the shard's name stands before it.
pub struct Files {
    place: PathBuf,
    source: Source,
    /// Names of the fields.
    fields: Vec<String>,
    /// Numbers of an example and of its field.
    chosen: Vec<(u32, u8)>,
    /// Examples whose key another shard has too.
    doubles: HashSet<u32>,
    lacking: Vec<String>,
    /// By column, what its numbers mean.
    classes: Mutex<HashMap<String, Option<Vec<String>>>>,
}

/// See [`watch_indexing`].
static WATCHER: OnceLock<Box<dyn Fn(Progress) + Send + Sync>> = OnceLock::new();

/// Tells `watcher` how far the indexes have come that [`Files::open`] makes, from now on and in all of this
/// process: shards are opened deep inside of whatever reads a data set. The first call counts.
pub fn watch_indexing(watcher: impl Fn(Progress) + Send + Sync + 'static) {
    // That there is one already is no error.
    let _ = WATCHER.set(Box::new(watcher));
}

impl Files {
    /// Opens the shards at `place`, of which each example is the first of the fields `wanted` that it has.
    /// The index is kept in `cache`, or without one in the user's own folder for such.
    ///
    /// # Errors
    /// As [`Source::open`]; [`Error::Shard`] if no example has such a field, or a shard has a key twice.
    pub fn open(place: &Path, cache: Option<&Path>, wanted: &[&str]) -> Result<Self> {
        let config =
            SourceConfig { shards: vec![place.display().to_string()], ..SourceConfig::default() };
        let cache = cache.map_or_else(places::user_cache, Path::to_owned);
        let source = Source::open(&config, &cache, &mut |progress| {
            if let Some(watcher) = WATCHER.get() {
                watcher(progress);
            }
        })?;
        if u32::try_from(source.len()).is_err() {
            let reason = format!("{} examples; up to 2^32 will do: split it", source.len());
            return Err(Error::shard(config.shards.join(", "), reason));
        }
        let fields = wanted.iter().map(|&name| name.to_owned()).collect();
        let (chosen, doubles, lacking) = (Vec::new(), HashSet::new(), Vec::new());
        let (place, classes) = (place.to_owned(), Mutex::default());
        let mut files = Self { place, source, fields, chosen, doubles, lacking, classes };
        files.choose()?;
        files.sort()?;
        Ok(files)
    }

    fn choose(&mut self) -> Result<()> {
        let mut more = 0_u64;
        for at in 0..self.source.len() {
            let has = self.source.fields(at)?;
            let field = self.fields.iter().position(|name| has.iter().any(|has| has.name == *name));
            match field {
                Some(field) => self.chosen.push((at as u32, field as u8)),
                None if self.lacking.len() < MOST_NAMED => {
                    let has: Vec<String> = has.into_iter().map(|field| field.name).collect();
                    let (name, wanted) = (self.source.name(at), self.fields.join(", "));
                    let lacks = |_| format!("{name}: has {}, none of {wanted}", has.join(", "));
                    let read = self.source.read_some(at, &|_| false);
                    self.lacking.push(read.map_or_else(|error| error.to_string(), lacks));
                }
                None => more += 1,
            }
        }
        if more > 0 {
            self.lacking.push(format!("and {more} more"));
        }
        match (self.chosen.is_empty(), self.lacking.first()) {
            (true, Some(first)) => {
                let reason = format!("no example of use: {first}");
                Err(Error::shard(self.place.display().to_string(), reason))
            }
            _ => Ok(()),
        }
    }

    /// Puts the files in order, and finds those of the same path.
    fn sort(&mut self) -> Result<()> {
        let paths = self.chosen.iter().map(|&(at, field)| {
            let (shard, key) = self.source.place(at as usize)?;
            Ok((path_of(&key, &self.fields[usize::from(field)]), shard, at, field))
        });
        let mut paths: Vec<(String, u32, u32, u8)> = paths.collect::<Result<_>>()?;
        paths.sort_by(|a, b| order(&a.0, &b.0).then(a.2.cmp(&b.2)));
        for pair in paths.windows(2) {
            let [(one, shard, at, _), (other, next_shard, next_at, _)] = pair else { continue };
            if one != other {
                continue;
            }
            if shard == next_shard {
                let name = self.source.name(*at as usize);
                return Err(Error::shard(name, "is there twice: give one of them another key"));
            }
            self.doubles.extend([*at, *next_at]);
        }
        self.chosen = paths.into_iter().map(|(_, _, at, field)| (at, field)).collect();
        Ok(())
    }

    /// How many files there are, at least one.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// Where the shards are, as the user named it.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// A file's path, with `/` between its parts.
    ///
    /// # Panics
    /// If there are not so many; so does everything that takes a number.
    pub fn path(&self, at: usize) -> String {
        let (example, field) = self.chosen[at];
        let Ok((shard, key)) = self.source.place(example as usize) else {
            return format!("example {example}"); // reading it tells what is wrong
        };
        let path = path_of(&key, &self.fields[usize::from(field)]);
        match self.doubles.contains(&example) {
            true => format!("{}/{path}", self.source.shard_name(shard)),
            false => path,
        }
    }

    /// Bytes of a file, as far as that is known without reading it, and a number that is another one when
    /// its shard was changed.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn stamp(&self, at: usize) -> Result<(u64, u64)> {
        let (example, field) = self.chosen[at];
        let name = &self.fields[usize::from(field)];
        let fields = self.source.fields(example as usize)?;
        let size =
            fields.into_iter().find(|field| field.name == *name).and_then(|field| field.size);
        let (shard, _) = self.source.place(example as usize)?;
        Ok((size.unwrap_or(0), self.source.shard_stamp(shard)))
    }

    /// Has what these files need fetched at once, as [`Source::prefetch`] does.
    pub fn prefetch(&self, files: impl Iterator<Item = usize>) {
        let examples: Vec<usize> = files.map(|at| self.chosen[at].0 as usize).collect();
        self.source.prefetch(&examples);
    }

    /// A file's content.
    ///
    /// # Errors
    /// As [`Source::read`], or if the field is empty or is neither bytes nor text.
    pub fn read(&self, at: usize) -> Result<Bytes> {
        let (example, field) = self.chosen[at];
        let name = self.fields[usize::from(field)].as_str();
        let read = self.source.read_some(example as usize, &|field| field == name)?;
        let content = read.get(name).map(|value| {
            let text = || value.text().map(|text| Bytes::copy_from_slice(text.as_bytes()));
            value.bytes().cloned().or_else(text)
        });
        let reason = match content {
            Some(Some(content)) => return Ok(content),
            Some(None) => format!("its {name} is neither bytes nor text"),
            None => format!("its {name} is missing"),
        };
        Err(Error::shard(self.source.name(example as usize), reason))
    }

    /// What is told of a file under the first of `names` that is there: a field of its example, or a key of the
    /// object in its field `json`. Numbers are as they are written, or what they mean in a column of classes.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn told(&self, at: usize, names: &[&str]) -> Result<Option<String>> {
        let wanted = |field: &str| field == NOTES || names.contains(&field);
        let example = self.source.read_some(self.chosen[at].0 as usize, &wanted)?;
        for name in names {
            match example.get(name) {
                Some(Value::Integer(number)) => return Ok(Some(self.class(name, *number)?)),
                Some(Value::Number(number)) => return Ok(Some(number.to_string())),
                Some(value) if value.text().is_some() => {
                    return Ok(value.text().map(str::to_owned));
                }
                _ => {}
            }
        }
        let noted = || {
            let notes: Json = serde_json::from_str(example.get(NOTES)?.text()?).ok()?;
            names.iter().find_map(|name| match notes.get(name)? {
                Json::String(text) => Some(text.clone()),
                Json::Number(number) => Some(number.to_string()),
                _ => None,
            })
        };
        Ok(noted())
    }

    /// What a column's number means, if its shard tells, or the number.
    fn class(&self, column: &str, number: i64) -> Result<String> {
        let mut known = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains_key(column) {
            known.insert(column.to_owned(), self.source.classes(column)?);
        }
        let names = known.get(column).and_then(Option::as_ref);
        let name = usize::try_from(number).ok().and_then(|number| names?.get(number).cloned());
        Ok(name.unwrap_or_else(|| number.to_string()))
    }

    /// Of examples without a file, each with its reason; beyond ten thousand they are only counted.
    pub fn lacking(&self) -> &[String] {
        &self.lacking
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{} files in {}", self.len(), self.place.display())
    }
}
